"""Write the curve of a sweep to files: two separate drawings and a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from flab.files import write_text
from flab.runs.report.budget import PUBLISHED, SOURCE, kept_data, kl_data, series_of
from flab.runs.report.drawings import drawing
from flab.runs.report.markup import table

Json = Mapping[str, Any]
KEPT = "kept.svg"
KL = "kl.svg"
TABLE = "sweep.md"


def write_curve(report: Json, folder: Path) -> list[str]:
    """Write ``kept.svg``, ``kl.svg`` and ``sweep.md`` of a sweep's report into ``folder``. Return their names."""
    rows = report["budgets"]
    write_text(folder / KEPT, _alone("kept", "Score kept by parameters removed", _kept(rows)))
    write_text(folder / KL, _alone("kl", "KL divergence by parameters removed", _kl(rows)))
    write_text(folder / TABLE, _table(rows))
    return [KEPT, KL, TABLE]


def _alone(name: str, label: str, data: Json) -> str:
    """Return a drawing as a complete file that follows the viewer's light or dark mode."""
    svg = drawing("lines", name, label, data)
    style = files("flab.runs.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    # The style sheet begins with the colours as variables for light and dark mode. A separate drawing needs only
    # these.
    colours = style[: style.index("* {")]
    text = "svg { color: var(--ink); background: var(--paper); font-family: system-ui, sans-serif }"
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title>", f"<style>{colours}{text}</style><title>", 1
    )


def _kept(rows: list[Json]) -> dict[str, Any]:
    """Return scores relative to the original, the calibration tests solved, and the published points for scale."""
    scored = [row for row in rows if row["retention"] is not None]
    tested = [row | {"solved": row["task_passed"] / row["task_total"]} for row in map(dict, rows) if row["task_total"]]
    return kept_data([
        series_of("score over the original's", "accent", True, scored, "retention"),
        series_of("calibration tests solved", "second", True, tested, "solved"),
        series_of("as published, other models", "ink", False, PUBLISHED, "retention"),
    ])  # fmt: skip


def _kl(rows: list[Json]) -> dict[str, Any]:
    return kl_data([series_of("cut, not trained", "accent", True, rows, "kl_nats_per_token")])


def _table(rows: list[Json]) -> str:
    """Return the budgets in Markdown."""
    tasks = list(dict.fromkeys(name for row in rows for name in row.get("scores") or {}))
    head = ["budget", "removed", "parameters", "vocabulary", "layers x width", "KL", "tests", *tasks, "best"]
    note = (
        "The models were cut and refitted, not trained. *tests*: solved calibration problems that were not used for fitting. "
        "*best*: no other budget here keeps as much with as few parameters."
    )
    scale = f"Published points in {KEPT}: {SOURCE}."
    return f"{table(head, [_cells(row, tasks) for row in rows])}\n\n{note} {scale}\n"


def _cells(row: Json, tasks: list[str]) -> list[str]:
    scores = [(row.get("scores") or {}).get(name) for name in tasks]
    return [
        f"{100 * row['remove']:g} %",
        f"{row['removed_fraction']:.1%}",
        f"{row['parameters']:,}",
        f"{row['vocabulary']['after']:,}",
        f"{row['layers']['after']} x {row['width']['after']}",
        f"{row['kl_nats_per_token']:.4f}",
        f"{row['task_passed']}/{row['task_total']}" if row["task_total"] else "–",
        *(f"{s['passed']}/{s['total']} (original {s['original']})" if s else "–" for s in scores),
        "yes" if row["pareto"] else "",
    ]
