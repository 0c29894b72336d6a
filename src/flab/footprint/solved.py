"""The tokens that a run of ``flab eval`` generated for each problem that it solved. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flab.errors import DataError
from flab.evaluation.compare import read_run


@dataclass(frozen=True)
class Solving:
    """Tokens generated on all problems of the code tasks, and the answers that passed: one for each solved problem, of
    several samples all that did.
    """

    name: str
    tokens: int
    problems: int

    @property
    def how(self) -> str:
        """The method, for a figure that is made with it."""
        return f"x {self.tokens:,} tokens over {self.problems} passed answers of {self.name}"


def solving(run: Path) -> Solving:
    """Read a run's code tasks, without perturbed ones.

    Raises:
        DataError: there is no run, or it has no code task.
    """
    tasks = [t for t in read_run(run)["tasks"] if t["kind"] == "code" and t["perturbation"] is None]
    if not tasks:
        raise DataError(f"{run}: no code task in it, so no problem is solved or not; run flab eval on one")
    rows = [row for task in tasks for row in task["rows"]]
    names = ", ".join(task["name"] for task in tasks)
    return Solving(names, sum(row["num_tokens"] for row in rows), sum(bool(row["passed"]) for row in rows))
