"""Read a run's folder and write the pages and the model cards into it (``flab report``). No file is left half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flab.errors import DataError
from flab.files import CARD, CARD_MARK, PathLike, as_path, write_json, write_text
from flab.progress import say
from flab.runs.report.card import card
from flab.runs.report.gather import MALFORMED, gather, malformed
from flab.runs.report.inputs import MODELS
from flab.runs.report.pages import to_html, to_markdown

HTML = "report.html"
MARKDOWN = "report.md"
JSON = "report.json"


def make_report(run: PathLike, sweep: PathLike | None = None) -> dict[str, Any]:
    """Write ``report.html``, ``report.md``, ``report.json`` and the model cards. Return the content of ``report.json``.

    ``sweep`` is the folder of a sweep, by default ``RUN/sweep`` if it exists. A README.md that flab did not write is kept.

    Raises:
        DataError: there is no run, a file is damaged, or the folder is not writable.
    """
    run = as_path(run)
    report = gather(run, as_path(sweep) if sweep is not None else None)
    try:
        # All pages are made before the first is written, so an error does not leave half a report.
        texts, warnings = _texts(run, report)
    except MALFORMED as error:
        raise malformed(run, "values in its JSON files", error) from error
    report["warnings"] = warnings
    report["files"] = [str(path.relative_to(run)) for path in [*texts, run / JSON]]
    try:
        for path, text in texts.items():
            write_text(path, text)
        write_json(run / JSON, report)
    except OSError as error:
        raise DataError(f"{run}: cannot be written ({error.strerror}); free space, or give another folder") from None
    for warning in warnings:
        say(f"warning: {warning}")
    return report


def _texts(run: Path, report: dict[str, Any]) -> tuple[dict[Path, str], list[str]]:
    """Return the text of each file, and warnings about cards that are left unchanged."""
    texts = {run / HTML: to_html(report), run / MARKDOWN: to_markdown(report)}
    warnings = []
    for name in MODELS[1:]:
        folder = run / name
        if not folder.is_dir() or not any(row["name"] == name for row in report["models"] or []):
            continue
        if _is_foreign(folder / CARD):
            warnings.append(f"{name}/{CARD} was not written by flab report, so it is kept; move it away to get a card")
        else:
            texts[folder / CARD] = card(report, name, _licence(folder))
    return texts, warnings


def _is_foreign(path: Path) -> bool:
    """Return whether a README.md exists that flab report did not write. An unreadable file counts as one."""
    if not path.exists():
        return False
    try:
        return CARD_MARK not in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True


def _licence(folder: Path) -> str:
    """Return the text of the folder's licence file, or an empty text if it is missing."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8", errors="replace")
    return ""
