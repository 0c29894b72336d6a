"""Checks of a training's inputs and output, before anything is loaded. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flab.data.samples import files_under
from flab.errors import CheckpointError
from flab.files import check_folder, check_place, read_json
from flab.pruning.plan import Plan

RUN = "run.json"  # in the working folder, the record of the models and the data of the training
REPORT = "recovery.json"  # in the output


def working_folder(out: Path) -> Path:
    """Return the folder of the checkpoints while the output is trained."""
    return out.with_name(out.name + ".training")


def check_inputs(student: Path, teacher: Path, data: Path, out: Path, overwrite: bool) -> Plan:
    """Return the plan by which the student was cut, after checking that there is data and that ``out`` can be written.

    ``student`` is a folder, or for an estimate the plan itself.

    Raises:
        CheckpointError: the student was not written by flab.
        DataError, OptionError, PlanError
    """
    check_folder(out, overwrite or is_uncleared(out), (student, teacher, data))
    check_place(working_folder(out), (student, teacher, data))
    plan = student if student.is_file() else student / "plan.json"
    if not plan.is_file():
        raise CheckpointError(f"{student} has no plan.json: give a folder that `flab prune` or `flab apply` wrote.")
    files_under(data)
    return Plan.read(plan)


def is_uncleared(out: Path) -> bool:
    """Return whether ``out`` is the result of the training in its working folder, which stopped before the check was over.

    The same command may then write it again from the last checkpoint, check it, and remove the folder.
    """
    found = [path for path in (out / REPORT, working_folder(out) / RUN) if path.is_file()]
    said: list[Any] = [read_json(path).get("identity") for path in found]
    return len(said) == 2 and said[0] == said[1]
