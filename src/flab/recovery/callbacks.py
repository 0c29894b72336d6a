"""What the training does beside its steps: the bar, and the clock with its limit and its marks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from flab.progress import Meter

COMPLETE = "complete"  # a file that a whole checkpoint holds: the seconds of training it stands for


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
        """Take the bar away."""
        if self.meter is not None:
            self.meter.close()
            self.meter = None


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of training, those of earlier, stopped processes (``spent``) included.

    At the limit, if there is one, it has the model measured and saved, and stops. In each checkpoint it leaves a file
    once all of it is written: the seconds that it stands for.
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
            mark = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
            mark.write_text(f"{self.seconds():.2f}\n")


def last_whole(folder: Path) -> tuple[Path | None, float]:
    """Return the newest checkpoint that was written to its end, and the seconds of training it stands for."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    if not whole:
        return None, 0.0
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    return newest, float((newest / COMPLETE).read_text())
