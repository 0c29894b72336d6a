"""Plan many budgets in one search (``flab sweep``).

The budgets share the texts, their token counts, the order of the layers, and the sets of layers that swapping found. Each
budget begins at the depth where the smaller one ended and skips depths at which a wider model was already worse. The sweep
assumes, without measuring it, that this also holds for the next budget.

KL alone decides between splits, whereas the tests decide between the finalists of ``flab plan``. The winner of each budget
is fitted on all tokens and run on the calibration's tests, so its plan can be applied like a plan of ``flab plan``.
A stopped sweep continues at the budget where it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.evaluation.evaluate import evaluate, read_tasks, sandbox_for
from flab.evaluation.tasks import parse_task_argument
from flab.files import PathLike, as_path, check_place, write_json
from flab.models.checkpoint import fingerprint as model_fingerprint
from flab.models.checkpoint import free, same_precision
from flab.models.options import Options, settled
from flab.progress import say
from flab.pruning.pipeline import apply
from flab.pruning.plan import Plan
from flab.pruning.planner import Planner, identity_of
from flab.pruning.recipe import Recipe
from flab.pruning.search import Known
from flab.runs.folder import SWEEP, check_limit, earlier
from flab.version import __version__

FORMAT = 1
# After this many depths in a row that are worse than the best, fewer layers are not tried.
PATIENCE = 1
OF_BUDGETS = ("remove", "finalists", "finalist_tokens")  # fields that do not affect what one budget leaves for the next


def sweep(
    model: PathLike,
    budgets: Sequence[float],
    out: PathLike,
    recipe: Recipe | None = None,
    options: Options | None = None,
    save: bool = False,
    tasks: Sequence[PathLike] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Plan all budgets, smallest first. Return the content of ``out/sweep.json``.

    ``save`` also saves each smaller model. With ``tasks`` the models are saved too and evaluated beside the original.

    Raises:
        OptionError: no budget was given, or ``out`` contains something else.
        BudgetError: one of the budgets cannot be reached. Nothing is planned then.
        FlabError: planning or evaluating fails.
    """
    recipe, options, folder = recipe or Recipe(), settled(options or Options()), as_path(out)
    if not budgets:
        raise OptionError("`remove`: got none; give one or more budgets, e.g. 0.2 and 0.4.")
    check_limit(limit, tasks)
    # The budgets are sorted, because each starts from what the smaller one found. ``replace`` checks each
    # value.
    wanted = sorted({replace(recipe, remove=budget).remove for budget in budgets})
    start = time.perf_counter()
    planner = Planner(model, recipe, options, many=True)
    source = planner.source.path
    check_place(folder, [source, *recipe.inputs, *(parse_task_argument(os.fspath(task))[1] for task in tasks)])
    sha256 = model_fingerprint(planner.source)
    state = known_sweep(folder, identity_of(sha256, recipe, options, planner.texts, OF_BUDGETS))
    if tasks:
        sandbox_for(read_tasks(tasks, limit, (), 0), options)
    planner.known = _known(state)
    planner.check_budgets(wanted)
    state |= {"model": str(source), "model_sha256": sha256}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SWEEP, state)
    for budget in wanted:
        if (row := _row(state, budget)) is None or not (folder / row["plan"]).is_file():
            _keep(folder, state, _plan(planner, budget, folder, state), planner.known)
        else:
            say(f"budget {100 * budget:g} %: already planned; {folder / row['plan']} is kept")
        if save or tasks:
            planner.free_streams()
            _save(source, folder, budget, options)
    if tasks:
        measure_budgets(source, folder, wanted, state, tasks, limit, options)
    state["budgets"] = mark_best(state["budgets"])
    state["seconds"] = {"now": round(time.perf_counter() - start, 2)}
    write_json(folder / SWEEP, state)
    return state


def _save(source: Path, folder: Path, budget: float, options: Options) -> None:
    """Save the model of a budget's plan, unless it exists."""
    plan, out = folder / _plan_name(budget), folder / _name(budget)
    if not (out / "plan.json").is_file() or (out / "plan.json").read_bytes() != plan.read_bytes():
        apply(source, plan, out, replace(options, overwrite=True))


def known_sweep(folder: Path, digest: str) -> dict[str, Any]:
    """Return the record of an earlier, stopped sweep. Raise OptionError if the folder contains something else."""
    before = earlier(folder, SWEEP, "a sweep")
    if before is None:
        return {"format": FORMAT, "flab": __version__, "fingerprint": digest, "budgets": [], "known": {}}
    if before.get("fingerprint") != digest:
        raise OptionError(
            f"-o {folder} holds a sweep of another model, recipe or data: give a new folder, or remove this one."
        )
    return before


def _known(state: Mapping[str, Any]) -> Known:
    """Return what the finished budgets found, for the next ones."""
    swapped = {int(count): tuple(found) for count, found in state["known"].get("swapped", {}).items()}
    return Known(list(state["known"].get("layer_path", [])), swapped, patience=PATIENCE)


def _plan(planner: Planner, budget: float, folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Plan one budget, write its plan and return its row."""
    began = time.perf_counter()
    smaller = [row for row in state["budgets"] if row["remove"] < budget]
    # Only smaller budgets help with this one. An earlier, stopped sweep may have left rows of larger budgets.
    planner.known.most_layers = min((row["layers"]["after"] for row in smaller), default=None)
    planner.known.kl_by_layers = {int(n): kl for row in smaller for n, kl in row["kl_by_layers"].items()}
    decided, built, _ = planner.plan(budget)
    free(built)
    decided.write(folder / _plan_name(budget))
    return row_of(budget, decided) | {"seconds": round(time.perf_counter() - began, 2)}


def row_of(budget: float, plan: Plan) -> dict[str, Any]:
    """Return the row of one budget for the table and the curve."""
    chosen, least = next(c for c in plan.candidates if c["chosen"]), dict[str, float]()
    for candidate in plan.candidates:
        layers = str(candidate["layers"])
        least[layers] = min(candidate["kl_search"], least.get(layers, candidate["kl_search"]))
    return {
        "remove": budget,
        "removed_fraction": plan.removed_fraction,
        "parameters": plan.parameters_after,
        "parameters_before": plan.parameters_before,
        **plan.sizes(),
        "kl_nats_per_token": plan.kl_nats_per_token,
        "kl_vocabulary": plan.kl_vocabulary,
        "task_passed": chosen["task_passed"],
        "task_total": chosen["task_total"],
        "retention": None,
        "candidates": len(plan.candidates),
        "kl_by_layers": least,
        "warnings": plan.warnings,
        "plan": _plan_name(budget),
        "plan_seconds": plan.seconds,
    }


def _keep(folder: Path, state: dict[str, Any], row: dict[str, Any], known: Known) -> None:
    """Record the finished budgets, so that a stopped sweep continues after them."""
    rows = [one for one in state["budgets"] if one["remove"] != row["remove"]]
    state["budgets"] = sorted([*rows, row], key=lambda one: float(one["remove"]))
    state["known"] = {"layer_path": known.layer_path, "swapped": known.swapped}
    write_json(folder / SWEEP, state)


def _row(state: Mapping[str, Any], budget: float) -> dict[str, Any] | None:
    return next((row for row in state["budgets"] if row["remove"] == budget), None)


def _plan_name(budget: float) -> str:
    return f"plan-{100 * budget:.10g}.json"


def _name(budget: float) -> str:
    return f"smaller-{100 * budget:.10g}"


def measure_budgets(
    source: Path,
    folder: Path,
    budgets: Sequence[float],
    state: dict[str, Any],
    tasks: Sequence[PathLike],
    limit: int | None,
    options: Options,
) -> None:
    """Evaluate the original and every smaller model on the tasks. Rows get ``retention`` and ``scores``."""
    found, asked = {}, same_precision(source, options)
    for name, path in [("original", source), *((_name(b), folder / _name(b)) for b in budgets)]:
        say(f"evaluating {name}")
        report = evaluate(path, list(tasks), folder / "eval" / name, None, asked, limit, gold=False)
        found[name] = {task["name"]: task["summary"] for task in report["tasks"]}
    for budget in budgets:
        row = _row(state, budget)
        assert row is not None
        row["scores"] = {
            task: {
                "passed": summary["passed"],
                "total": summary["total"],
                "original": found["original"][task]["passed"],
                "interval_95": summary["interval_95"],
            }
            for task, summary in found[_name(budget)].items()
        }
        # The curve shows the first task. If the original passes none of its problems, no retention can be computed.
        first = next(iter(row["scores"].values()))
        row["retention"] = first["passed"] / first["original"] if first["original"] else None


def mark_best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Set ``pareto`` in each row: whether no other row keeps as much with as few parameters."""
    # Rows are compared by the best measure that all of them have: retention, tests or KL.
    kept = [-float(row["kl_nats_per_token"]) for row in rows]
    if all(row["retention"] is not None for row in rows):
        kept = [float(row["retention"]) for row in rows]
    elif all(row["task_total"] for row in rows):
        kept = [row["task_passed"] / row["task_total"] for row in rows]
    scored = [(row["parameters"], score) for row, score in zip(rows, kept, strict=True)]

    def is_beaten(size: int, score: float) -> bool:
        return any(s <= size and k >= score and (s < size or k > score) for s, k in scored)

    return [row | {"pareto": not is_beaten(*one)} for row, one in zip(rows, scored, strict=True)]
