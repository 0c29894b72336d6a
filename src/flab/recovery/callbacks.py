"""Callbacks of the training: the progress bar, and the clock with its time limit and its marks in checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from flab.files import write_text
from flab.progress import Meter

# A file in each whole checkpoint: the seconds of training so far, and the sizes of all files.
COMPLETE = "complete.json"


class Progressing(TrainerCallback):  # type: ignore[misc]
    """A bar with the step, the loss, the held-out loss and the time left."""

    def __init__(self) -> None:
        self.meter: Meter | None = None
        self.text = {"loss": "", "held out": ""}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shown = bool(state.is_world_process_zero)
        self.meter = Meter("Training", state.max_steps, "steps", state.global_step, shown)
        self.meter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.meter is not None:
            self.meter.set(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        for name, key in (("loss", "loss"), ("held out", "eval_loss")):
            if key in logs:
                self.text[name] = f", {name} {logs[key]:.4f}"
        if self.meter is not None:
            self.meter.set(state.global_step, "Training" + "".join(self.text.values()))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.meter is not None:
            self.meter.close()
            self.meter = None


class TrainingTime(TrainerCallback):  # type: ignore[misc]
    """Counts seconds of training, including those of earlier, stopped processes (``spent``).

    At the limit, if there is one, it has the model measured and saved, and stops. In each checkpoint it leaves a file
    once all of it is written: the seconds that it stands for, and whether training ended there.
    """

    def __init__(self, spent: float, limit: float | None) -> None:
        self.spent = spent
        self.limit = limit
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds spent so far."""
        return self.spent + time.monotonic() - self.start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.limit is not None and self.seconds() > self.limit:
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE]
            # A checkpoint is whole if every file still has the size recorded here. A killed process leaves shorter files or
            # none.
            sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
            over = bool(control.should_training_stop)
            mark = {"seconds": round(self.seconds(), 2), "over": over, "sizes": sizes}
            write_text(folder / COMPLETE, json.dumps(mark) + "\n")


def last_whole(folder: Path) -> tuple[Path | None, float]:
    """Return the newest whole checkpoint and its seconds of training."""
    found = {path: _seconds_of(path) for path in folder.glob("checkpoint-*")}
    whole = {path: seconds for path, seconds in found.items() if seconds is not None}
    if not whole:
        return None, 0.0
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    return newest, whole[newest]


def is_over(checkpoint: Path) -> bool:
    """Return whether training ended at a whole checkpoint: after all steps, by its patience, or at its time limit."""
    mark = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    return bool(mark.get("over"))


def _seconds_of(checkpoint: Path) -> float | None:
    """Return the seconds that a checkpoint stands for; None if the process was killed while it wrote or removed the folder.

    The trainer removes older checkpoints in any order, so the mark may outlive the files that it lists.
    """
    try:
        mark = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        whole = all((checkpoint / name).stat().st_size == size for name, size in mark["sizes"].items())
    except (OSError, ValueError):
        return None
    return float(mark["seconds"]) if whole else None
