"""The finished steps of planning, kept beside the output, so that a stopped plan continues instead of starting again.

``OUT.planning`` holds one line of JSON for each finished step, and a file for each refitted layer of the winner. Everything
in it belongs to one identity: model, texts, recipe and precision. The first step creates it, and the last removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flab.errors import FlabError, OutputError
from flab.files import discard, write_text
from flab.files.temporary import sweep
from flab.progress import say

STEPS = "steps.jsonl"
SAVED = "saved"  # the last step: the output is there
T = TypeVar("T")


def working_folder(out: Path) -> Path:
    """Return the folder of the steps while the output is planned."""
    return out.with_name(out.name + ".planning")


class Journal:
    """The steps of one planning. Without a folder it keeps nothing and knows nothing."""

    def __init__(self, folder: Path | None = None, identity: str = "") -> None:
        """Read the steps that a stopped run of the same ``identity`` left in the folder. Steps of another are replaced."""
        self.folder = folder
        self.identity = identity
        self._known: dict[str, Any] = {}
        self._begun = False  # whether this run has written to the file
        if folder is not None:
            sweep(folder)
            said, known = read_steps(folder)
            self._known = known if said == identity else {}
        if self._known and not self.is_saved:
            say(f"continuing from {folder}, which holds {len(self._known)} finished steps of this plan")

    @property
    def is_saved(self) -> bool:
        """Whether the run wrote the output but stopped before it removed the folder."""
        return SAVED in self._known

    def recall(self, name: str, work: Callable[[], T]) -> T:
        """Return what a step found, as a JSON value with text for keys. Runs the step if it is not known."""
        if name not in self._known:
            found = work()
            self.keep(name, found)
            return found
        known: T = self._known[name]
        return known

    def get(self, name: str) -> Any:
        """Return what a step found, or None if it is not known."""
        return self._known.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Record what a step found. It is on disk when this returns."""
        if self.folder is None:
            return
        self._known[name] = value
        if self._begun:
            with (self.folder / STEPS).open("a", encoding="utf-8") as file:
                file.write(_line(name, value))
            return
        if len(self._known) == 1:
            # Nothing was recalled, so what the folder holds, if anything, are the steps of another planning.
            self.clear()
            self.folder.mkdir(parents=True)
        # Written anew, without the line that a kill may have left half written.
        lines = [_line(step, found) for step, found in self._known.items()]
        write_text(self.folder / STEPS, json.dumps({"identity": self.identity}) + "\n" + "".join(lines))
        self._begun = True

    def files(self, name: str) -> Path | None:
        """Return the folder for the files of a step, created if needed; None if nothing is kept."""
        if self.folder is None:
            return None
        # Names of steps hold spaces and brackets and may be long, so the folder is named by their hash.
        folder = self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
        self.recall(f"files of {name}", lambda: folder.name)
        folder.mkdir(exist_ok=True)
        return folder

    @contextlib.contextmanager
    def cleared_by_failure(self) -> Iterator[None]:
        """Remove the folder if the block fails for a lasting reason. A full disk or a stop from outside leaves it."""
        try:
            yield
        except FlabError as error:
            if not isinstance(error, OutputError) or not self._begun:
                self.clear()
            raise

    def clear(self) -> None:
        """Remove the folder, once the output exists."""
        if self.folder is not None and self.folder.is_dir():
            discard(self.folder)


def _line(step: str, found: Any) -> str:
    return json.dumps({"step": step, "found": found}) + "\n"


def is_uncleared(out: Path) -> bool:
    """Return whether a run wrote ``out`` but stopped before it removed its steps; the same command may then write it again."""
    return out.exists() and SAVED in read_steps(working_folder(out))[1]


def read_steps(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the identity and the steps in a folder, up to a line that was half written when its run was killed."""
    try:
        lines = (folder / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
        identity = json.loads(lines[0])["identity"]
    except (OSError, ValueError, LookupError, TypeError):
        return None, {}
    known = {}
    for line in lines[1:]:
        try:
            step = json.loads(line)
            known[step["step"]] = step["found"]
        except (ValueError, LookupError, TypeError):
            break
    return identity, known
