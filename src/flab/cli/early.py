"""Check a command's arguments before torch is imported: outputs, model folders, tasks, data.

The library checks all of it again. Checking here first gives a one-line error after a third of a second instead of six.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from flab.data.rows import is_hub_id
from flab.data.samples import read_samples
from flab.evaluation.tasks import parse_task_argument, read_task
from flab.files import PathLike, as_path, check_place
from flab.models.families import family_of
from flab.models.source import ModelFolder, ModelSource, check_tokenizer, check_weights
from flab.models.stock import check_sidecars
from flab.models.tensors import check_tensors
from flab.pruning.recipe import Recipe

if TYPE_CHECKING:
    from flab.runs.recipe_file import RecipeFile


def check_model(source: PathLike, any_family: bool = False) -> ModelSource:
    """Open a local folder; FlabError if it holds no model that can be loaded. Hub ids are not checked here."""
    path = as_path(source)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        folder = ModelFolder.open(source)
        if not any_family and isinstance(folder.raw.get("model_type"), str):
            family_of(SimpleNamespace(**folder.raw))
        check_weights(folder)
        check_tensors(folder)
        check_tokenizer(folder.path)
        return folder
    return source


def check_source(source: PathLike) -> ModelSource:
    """Check a model that a smaller one will be made of: also the files that are copied into its folder."""
    folder = check_model(source)
    if isinstance(folder, ModelFolder):
        check_sidecars(folder.path)
    return folder


def check_planning(model: PathLike, recipe: Recipe) -> None:
    """Check the model, and the calibration and corpus text, as far as they can be read without loading anything."""
    check_source(model)
    for path in recipe.inputs:
        read_samples(path)


def check_tasks(tasks: Iterable[PathLike], limit: int | None) -> None:
    """Read the task files that are local or cannot be on the hub. Hub data sets are not checked here."""
    for argument in tasks:
        kind, source = parse_task_argument(os.fspath(argument))
        if as_path(source).is_file() or not is_hub_id(source):
            read_task(as_path(source), kind, limit)


def check_recovery(
    student: PathLike, teacher: PathLike, data: Path, out: Path, overwrite: bool, plan: bool = False
) -> None:
    """Check both models, the data and the output of a training. With ``plan`` the student may also be the plan of one."""
    from flab.recovery.inputs import check_inputs

    planned = plan and as_path(student).is_file()
    for model in (teacher,) if planned else (student, teacher):
        check_model(model)
    check_inputs(as_path(student), as_path(teacher), data, out, overwrite)
    if not planned:
        check_source(student)


def check_sweep(
    model: PathLike, out: Path, recipe: Recipe, budgets: Sequence[float], tasks: Sequence[PathLike], limit: int | None
) -> None:
    """Check the budgets, and everything that a sweep reads and writes."""
    from flab.runs.folder import SWEEP, check_limit, earlier

    check_limit(limit, tasks)
    for budget in budgets:
        replace(recipe, remove=budget)
    check_place(out, [model, *recipe.inputs, *(parse_task_argument(os.fspath(task))[1] for task in tasks)])
    earlier(out, SWEEP, "a sweep")
    check_tasks(tasks, limit)
    check_planning(model, recipe)


def check_run(recipe_file: Path, out: Path) -> RecipeFile:
    """Read a recipe, and check its model, its files and the folder of the run."""
    from flab.runs.folder import known_stages
    from flab.runs.recipe_file import check_inputs, read_recipe

    recipe = read_recipe(recipe_file)
    known_stages(out)
    check_inputs(recipe)
    check_planning(recipe.model, recipe.prune)
    return recipe
