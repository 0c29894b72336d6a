"""What planning has found out so far, kept beside the output, so that a stopped plan goes on instead of starting again.

``OUT.planning`` holds one line of JSON for each finished step, and a file for each layer of the winner that is refitted. All
of it belongs to one identity: model, texts, recipe and precision. It appears with the first step and goes with the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flab.errors import FlabError, OutputError
from flab.files import discard, sweep, write_text
from flab.progress import say

STEPS = "steps.jsonl"
SAVED = "saved"  # the last step: the output is there
T = TypeVar("T")


def working_folder(out: Path) -> Path:
    """Where the steps lie while the output is planned."""
    return out.with_name(out.name + ".planning")


class Journal:
    """The steps of one planning; without a folder they are kept nowhere, and none is known."""

    def __init__(self, folder: Path | None = None, identity: str = "") -> None:
        """Read the steps that a stopped run of the same ``identity`` left in the folder; those of another are replaced."""
        self.folder = folder
        self.identity = identity
        self._known: dict[str, Any] = {}
        self._begun = False  # whether this run has written to the file
        if folder is not None:
            sweep(folder)
            said, known = read_steps(folder)
            self._known = known if said == identity else {}
        if self._known and not self.is_saved:
            say(f"going on from {folder}, where {len(self._known)} steps of this planning are kept")

    @property
    def is_saved(self) -> bool:
        """Whether the output was written, and the run stopped before it had cleared up."""
        return SAVED in self._known

    def recall(self, name: str, work: Callable[[], T]) -> T:
        """Return what a step found, by doing it if it is not known; a value of JSON, with text for keys."""
        if name not in self._known:
            found = work()
            self.keep(name, found)
            return found
        known: T = self._known[name]
        return known

    def get(self, name: str) -> Any:
        """Return what a step found, None if it is not known."""
        return self._known.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Note what a step found, on disk before this returns."""
        if self.folder is None:
            return
        self._known[name] = value
        if self._begun:
            with (self.folder / STEPS).open("a", encoding="utf-8") as file:
                file.write(_line(name, value))
            return
        if len(self._known) == 1:
            self.clear()  # it holds the steps of another planning
            self.folder.mkdir(parents=True)
        lines = [
            _line(step, found) for step, found in self._known.items()
        ]  # without a line that a kill left half written
        write_text(self.folder / STEPS, json.dumps({"identity": self.identity}) + "\n" + "".join(lines))
        self._begun = True

    def files(self, name: str) -> Path | None:
        """Return the folder for the files of a step, made if it is new; None if nothing is kept."""
        if self.folder is None:
            return None
        folder = self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
        self.recall(f"files of {name}", lambda: folder.name)
        folder.mkdir(exist_ok=True)
        return folder

    @contextlib.contextmanager
    def cleared_by_failure(self) -> Iterator[None]:
        """Remove the folder if the block fails for a reason that stays; a full disk, or a stop from outside, leaves it."""
        try:
            yield
        except FlabError as error:
            if not isinstance(error, OutputError) or not self._begun:
                self.clear()
            raise

    def clear(self) -> None:
        """Remove the folder: the output is there."""
        if self.folder is not None and self.folder.is_dir():
            discard(self.folder)


def _line(step: str, found: Any) -> str:
    return json.dumps({"step": step, "found": found}) + "\n"


def is_uncleared(out: Path) -> bool:
    """Return whether a run wrote ``out`` and stopped before it had cleared up; the same command may then write it again."""
    return out.exists() and SAVED in read_steps(working_folder(out))[1]


def read_steps(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the identity and the steps in a folder; a line that was half written when its run was killed ends them."""
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
