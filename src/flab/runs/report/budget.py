"""Draw the budget curve: what is kept and the KL divergence over the fraction of parameters removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flab.runs.report.blocks import Block, Chart, Charts, Gap, Table, Text
from flab.runs.report.inputs import PLAN, AbsentError, Inputs
from flab.runs.report.scores import main_task
from flab.runs.report.words import NONE, count, name_of, number, percent

Json = Mapping[str, Any]

# arXiv 2412.15921: at 22 % removed, 97 % of pass@1 kept without training, all of it after recovery
PUBLISHED: tuple[dict[str, Any], ...] = (
    {"name": "as published, untrained", "removed_fraction": 0.22, "retention": 0.97},
    {"name": "as published, recovered", "removed_fraction": 0.22, "retention": 1.0, "at_least": True},
)
SOURCE = "Flab-Pruner, arXiv 2412.15921, as published, 7 B models, other benchmarks: for scale only"
NO_SWEEP = "no other budget was tried: `flab sweep MODEL --remove 0.1 --remove 0.2 -o RUN/sweep` tries several"
OTHER_SWEEP = (
    "the sweep is of another model ({name}): `flab sweep MODEL --remove 0.1 --remove 0.2 -o SWEEP` of this run's original, "
    "and `flab report RUN --sweep SWEEP` shows it"
)


def budget(inputs: Inputs, tasks: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return the models of this run, those of the sweep, and the published points, each with what it keeps."""
    plan = inputs.plan
    if plan is None:
        raise AbsentError(
            inputs.earlier(PLAN) or "there is no plan: `flab run RECIPE -o RUN` has not finished its first stage"
        )
    share = 1 - plan["parameters_after"] / plan["parameters_before"]
    task = main_task(tasks)
    paired = {one["name"]: one.get("paired") for one in (task or {"models": []})["models"]}
    points = []
    for name in inputs.names[1:]:
        kept = (paired.get(name) or {}).get("retention") or {}
        points.append({
            "name": name, "removed_fraction": share, "retention": kept.get("ratio"), "low": kept.get("low"),
            "high": kept.get("high"), "kl": plan.get("kl_nats_per_token") if name == "pruned" else None,
        })  # fmt: skip
    return {
        "task": task["name"] if task else None,
        "points": points,
        "sweep": _sweep(inputs.sweep),
        "published": {"points": [dict(one) for one in PUBLISHED], "source": SOURCE},
    }


def no_sweep(inputs: Inputs) -> str:
    """Return the reason why the report has no other budgets."""
    if inputs.other_sweep is None:
        return NO_SWEEP
    return OTHER_SWEEP.format(name=name_of(inputs.other_sweep))


def _sweep(sweep: Json | None) -> list[dict[str, Any]] | None:
    if sweep is None:
        return None
    names = ("remove", "removed_fraction", "parameters", "vocabulary", "layers", "width", "kl_nats_per_token",
             "task_passed", "task_total", "retention", "pareto")  # fmt: skip
    rows = [{name: one.get(name) for name in names} for one in sweep["budgets"]]
    return sorted(rows, key=lambda row: row["removed_fraction"])


def blocks(report: Json) -> Iterator[Block]:
    """Return the charts of retention and KL over the fraction removed."""
    found = report["budget"]
    charts = [_kept_chart(found)]
    if found["sweep"]:  # a single point makes no curve, and its KL is in the table of models
        charts.append(_kl_chart(found))
    yield Charts(charts)
    yield _sweep_table(found["sweep"]) if found["sweep"] else Gap(report["missing"]["sweep"])
    yield Text(f"Diamonds: {SOURCE}. They keep 0.97 of pass@1 without training, and 1.00 or more after recovery.", True)


def _kept_chart(found: Json) -> Chart:
    """Return the chart of scores relative to the original. A sweep may have no scores, so it also shows calibration tests."""
    known = [one for one in found["points"] if one["retention"] is not None]
    swept = found["sweep"] or []
    scored = [one for one in swept if one["retention"] is not None]
    tested = [one | {"solved": one["task_passed"] / one["task_total"]} for one in swept if one["task_total"]]
    series = [
        series_of("sweep, score", "muted", True, scored, "retention"),
        series_of("sweep, calibration tests", "faint", True, tested, "solved"),
        *(series_of(one["name"], _style(one["name"]), False, [one], "retention") for one in known),
        series_of("as published", "ink", False, found["published"]["points"], "retention"),
    ]
    note = (
        f"This run: passes relative to the original on {found['task'] or 'no task'}, over all samples. The whiskers are 95 % "
        "bootstrap intervals over its problems. Sweep: models after the cut, without training. Scores are relative to the "
        "original, if tasks were given. Tests are the share of calibration problems solved."
    )
    rows = [[one["name"], percent(one["removed_fraction"]), percent(one["retention"]), _spread(one)] for one in known]
    rows += [["sweep, score", percent(one["removed_fraction"]), percent(one["retention"]), NONE] for one in scored]
    rows += [["sweep, tests", percent(one["removed_fraction"]), percent(one["solved"]), NONE] for one in tested]
    rows += [[one["name"], percent(one["removed_fraction"], 0), _published(one), NONE]
             for one in found["published"]["points"]]  # fmt: skip
    table = Table("Score kept by parameters removed", ["model", "removed", "kept", "95 %"], rows, note)
    return Chart("kept", "lines", "What is kept", kept_data(series), note, table)


def _published(one: Json) -> str:
    return percent(one["retention"]) + (" or more" if one.get("at_least") else "")


def _kl_chart(found: Json) -> Chart:
    known = [one | {"kl_nats_per_token": one["kl"]} for one in found["points"] if one["kl"] is not None]
    swept = found["sweep"] or []
    series = [series_of("sweep, untrained", "muted", True, swept, "kl_nats_per_token")]
    series += [series_of(one["name"], _style(one["name"]), False, [one], "kl_nats_per_token") for one in known]
    note = "Nats per token from the original on the comparison windows of the calibration, after the cut and before training."
    rows = [[one["name"], percent(one["removed_fraction"]), number(one["kl"])] for one in known]
    rows += [["sweep", percent(one["removed_fraction"]), number(one["kl_nats_per_token"])] for one in swept]
    table = Table("KL by parameters removed", ["model", "removed", "KL"], rows, note)
    return Chart("kl", "lines", "How far the model moves", kl_data(series), note, table)


def series_of(label: str, style: str, line: bool, rows: Sequence[Json], field: str) -> dict[str, Any]:
    """Return the series of a field over the fraction removed. Retention has its interval too."""
    names = ("low", "high") if field == "retention" else ()
    points = [{"x": one["removed_fraction"], "y": one[field], **{n: one.get(n) for n in names}} for one in rows]
    return {"label": label, "style": style, "line": line, "points": points}


def kept_data(series: Sequence[Json]) -> dict[str, Any]:
    """Return the drawing of retention over the fraction removed."""
    axes = {"x": "parameters removed", "y": "share", "percent_x": True, "rules": [1.0], "share_y": True}
    return {**axes, "series": series}


def kl_data(series: Sequence[Json]) -> dict[str, Any]:
    """Return the drawing of the KL over the fraction removed."""
    return {"x": "parameters removed", "y": "KL, nats per token", "percent_x": True, "series": series}


def _style(name: str) -> str:
    return "accent" if name == "recovered" else "second"


def _spread(one: Json) -> str:
    return NONE if one["low"] is None else f"{percent(one['low'])} to {percent(one['high'])}"


def _sweep_table(rows: list[Json]) -> Table:
    lines = [[
        f"{100 * one['remove']:g} %", percent(one["removed_fraction"]), count(one["parameters"]),
        *(_both(one[part]) for part in ("vocabulary", "layers", "width")), number(one["kl_nats_per_token"]),
        NONE if one["task_total"] is None else f"{one['task_passed']} of {one['task_total']}",
        percent(one["retention"]), "yes" if one["pareto"] else "no",
    ] for one in rows]  # fmt: skip
    columns = ["asked for", "removed", "parameters", "vocabulary", "layers", "width", "KL", "tests", "kept", "best"]
    note = (
        "sweep.json: each budget was planned, built and measured, but not trained. A budget is best if no other has fewer "
        "parameters and keeps more."
    )
    return Table("Other budgets", columns, lines, note)


def _both(value: Json | None) -> str:
    return NONE if value is None else count(value["after"])
