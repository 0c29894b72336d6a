"""What is wrong with a command's arguments, found before anything heavy is imported: outputs, model folders, data. No torch.

The library checks all of it again; this only saves the seconds that importing torch takes before a one-line error.
"""

from __future__ import annotations

from collections.abc import Iterable

from flab.data.samples import read_samples
from flab.evaluation.tasks import parse_task_argument, read_task
from flab.files import PathLike, as_path
from flab.models.source import ModelFolder
from flab.pruning.recipe import Recipe


def check_model(source: PathLike) -> None:
    """CheckpointError where a local folder holds no model that can be loaded; a hub id is left to the download."""
    path = as_path(source)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        _ = ModelFolder.open(path).stored


def check_planning(model: PathLike, recipe: Recipe) -> None:
    """The model, and the calibration and corpus text, as far as they can be read without loading anything."""
    check_model(model)
    for path in recipe.inputs:
        read_samples(path)


def check_tasks(tasks: Iterable[str], limit: int | None) -> None:
    """Read the task files that are here; hub data sets are left to the download."""
    for argument in tasks:
        kind, source = parse_task_argument(argument)
        if as_path(source).is_file():
            read_task(as_path(source), kind, limit)
