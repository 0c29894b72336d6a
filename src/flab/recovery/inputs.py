"""What a training reads and where it writes, checked before anything is loaded. No torch."""

from __future__ import annotations

from pathlib import Path

from flab.data.samples import files_under
from flab.errors import CheckpointError
from flab.files import check_folder, check_place
from flab.pruning.plan import Plan


def working_folder(out: Path) -> Path:
    """Where checkpoints lie while the output is trained."""
    return out.with_name(out.name + ".training")


def check_inputs(student: Path, teacher: Path, data: Path, out: Path, overwrite: bool) -> Plan:
    """Return the plan by which the student was cut, after checking that there is data and that ``out`` can be written.

    Raises:
        CheckpointError: the student was not written by flab.
        DataError, OptionError, PlanError
    """
    check_folder(out, overwrite, (student, teacher, data))
    check_place(working_folder(out), (student, teacher, data))
    if not (student / "plan.json").is_file():
        raise CheckpointError(f"{student} has no plan.json: give a folder that `flab prune` or `flab apply` wrote.")
    files_under(data)
    return Plan.read(student / "plan.json")
