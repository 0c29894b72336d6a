"""The tokens that a run of ``flab eval`` generated for each problem that it solved, and the number of generated tokens after
which making the smaller model has paid off, in seconds and in joules. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from flab.errors import DataError
from flab.evaluation.compare import read_run
from flab.footprint.figures import Figure, ratio_of, unknown

COSTS = ("prune", "data", "recover")  # stages that do not help to make the smaller model


def payback(
    stages: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Any], solved: Solving | None
) -> dict[str, Any]:
    """Return the cost of a run's stages divided by what one token saves at the best throughput.

    The result holds ``seconds`` and ``energy``, each ``{cost, saved_per_token, tokens}``, and ``solved_problems``: the same
    tokens converted to problems, at the smaller model's tokens for each problem that it solved.
    """
    done = [name for name in COSTS if name in stages]
    made = [stages[name] for name in done]
    old, new = ({name: Figure(**given) for name, given in model["figures"].items()} for model in measured["models"])
    spent = Figure(sum(stage["seconds"] for stage in made), "s", f"measured: stages {', '.join(done)}")
    # One token takes the inverse of the throughput, and the difference of the two models is saved at each token.
    seconds = _payback(spent, *(_inverse(row["throughput"]) for row in (old, new)))
    joules = (row["energy_per_1000_tokens"].scaled(1 / 1000, "J", "each") for row in (old, new))
    return {
        "seconds": seconds,
        "energy": _payback(_joules(made), *joules),
        "solved_problems": _problems(seconds["tokens"], solved),
    }


def _inverse(throughput: Figure) -> Figure:
    """Return the seconds per token."""
    if throughput.value is None:
        return unknown("s", str(throughput.reason))
    low, high = (None if not end else 1 / end for end in (throughput.high, throughput.low))
    return Figure(1 / throughput.value, "s", throughput.method, low, high, throughput.rounds)


def _joules(made: list[Mapping[str, Any]]) -> Figure:
    """Return the joules of all stages together."""
    old = unknown("J", "the run was made before stages were metered")
    return reduce(Figure.plus, (Figure(**stage["energy"]) if stage.get("energy") else old for stage in made))


def _payback(cost: Figure, old: Figure, new: Figure) -> dict[str, Any]:
    """Return the cost divided by the difference of two figures per token."""
    if cost.value is None or old.value is None or new.value is None:
        reason = next(str(one.reason) for one in (cost, old, new) if one.value is None)
        return {"cost": cost.value, "saved_per_token": None, "tokens": unknown("tokens", reason).to_json()}
    saved = old.value - new.value
    how = f"{cost.method}, over what a token saves at the best throughput"
    found = ratio_of(new.to_json(), old.to_json())
    if found is not None and found.is_open:
        why = (
            "one round shows no saving"
            if found.is_single
            else "the measured ranges of both models overlap, so no saving was shown"
        )
        tokens = unknown("tokens", why)
    elif saved > 0:
        tokens = Figure(cost.value / saved, "tokens", how)
    else:
        tokens = unknown("tokens", "the smaller model saves nothing here, so it never pays for itself")
    return {"cost": cost.value, "saved_per_token": saved, "tokens": tokens.to_json()}


def _problems(tokens: Mapping[str, Any], solved: Solving | None) -> dict[str, Any]:
    if tokens["value"] is None:
        return unknown("problems", tokens["reason"]).to_json()
    if solved is None:
        return unknown("problems", "no code task was evaluated").to_json()
    if not solved.problems:
        return unknown("problems", f"no problem of {solved.name} was solved").to_json()
    each = solved.tokens / solved.problems
    how = f"{tokens['method']}; {each:.1f} tokens for each solved problem"
    return Figure(tokens["value"] / each, "problems", how).to_json()


@dataclass(frozen=True)
class Solving:
    """The tokens generated on all problems of the code tasks, and the number of answers that passed.

    With several samples, every passing sample of a problem counts.
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
        raise DataError(
            f"{run}: it has no code task, so no solved problems can be counted; run flab eval on a code task"
        )
    rows = [row for task in tasks for row in task["rows"]]
    names = ", ".join(task["name"] for task in tasks)
    return Solving(names, sum(row["num_tokens"] for row in rows), sum(bool(row["passed"]) for row in rows))
