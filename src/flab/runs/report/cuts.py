"""Show the cuts: how much of the vocabulary, the layers and the neurons is kept, and what the search measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flab.runs.report.blocks import Block, Chart, Charts, Shares, Strip, Table, Text
from flab.runs.report.inputs import PLAN, AbsentError, Inputs
from flab.runs.report.words import NONE, count, number, percent, quantity

Json = Mapping[str, Any]

SPLIT_FIELDS = (
    "vocabulary", "layers", "width", "parameters", "removed_fraction", "flops_per_token", "kept_layers", "kl_search",
    "kl", "kl_answer", "task_passed", "task_total", "chosen",
)  # fmt: skip


def cuts(inputs: Inputs) -> dict[str, Any]:
    """Return the sizes before and after, the kept layers by the original's index, the candidates and the layer path."""
    plan = inputs.plan
    if plan is None:
        raise AbsentError(
            inputs.earlier(PLAN) or "there is no plan: `flab run RECIPE -o RUN` has not finished its first stage"
        )
    return {
        **{part: {"before": plan[part]["before"], "after": plan[part]["after"]} for part in ("vocabulary", "width")},
        "layers": {name: plan["layers"][name] for name in ("before", "after", "kept")},
        "refit": (plan.get("refit") or {}).get("kind"),
        "criteria": plan.get("criteria"),
        "kl_vocabulary": plan.get("kl_vocabulary"),
        "candidates": [{name: one.get(name) for name in SPLIT_FIELDS} for one in plan["candidates"]],
        "layer_path": [{name: one.get(name) for name in ("removed", "kl", "score")} for one in plan["layer_path"]],
        "warnings": list(plan.get("warnings", [])),
    }


def blocks(report: Json) -> Iterator[Block]:
    """Return drawings of the cuts, then how the search found their split."""
    found = report["cuts"]
    rows = [(label, found[name]["before"], found[name]["after"]) for name, label in SHARES]
    yield Shares("Vocabulary and neurons kept", rows, "Sizes from plan.json. All layers have the same FFN width.")
    yield _strip(found["layers"])
    yield _charts(found)
    if not found["layer_path"]:
        yield Text("The plan has no layer path: no layer search took place, or the layers were given.", True)
    yield from (Text(f"Warning of the plan: {warning}") for warning in found["warnings"])


SHARES = (("vocabulary", "Vocabulary, tokens"), ("width", "FFN width, neurons per layer"))


def _strip(layers: Json) -> Strip:
    gone = [number for number in range(layers["before"]) if number not in set(layers["kept"])]
    listed = ", ".join(map(str, gone))
    note = f"Removed: {listed}, counted from 0 in the original." if gone else "No layer was removed."
    return Strip(f"Layers: {layers['after']} of {layers['before']} kept", layers["before"], layers["kept"], note)


def _charts(found: Json) -> Charts:
    charts = [_candidates(found["candidates"])] if found["candidates"] else []
    # Only the KL criterion measures every step. The others rank all layers at once, so there is no curve to draw.
    path = [one for one in found["layer_path"] if one["kl"] is not None]
    return Charts([*charts, _path(path)] if path else charts)


def _candidates(candidates: list[Json]) -> Chart:
    """Return the chart of the KL over the number of layers. Each point is labelled with its width."""
    chosen = [one for one in candidates if one["chosen"]]
    others = [one for one in candidates if not one["chosen"]]
    series = [
        {"label": "candidates", "style": "muted", "line": False, "points": [_point(one) for one in others]},
        {"label": "chosen", "style": "accent", "line": False, "points": [_point(one) for one in chosen]},
    ]
    columns = ["layers × width", "parameters", "removed", "FLOP per token", "KL, search", "KL", "KL, answers", "tests"]
    rows = [_row(one) for one in candidates]
    note = (
        "Nats per token from the original, on the tokens of the search. The number at a point is its FFN width. "
        "Tests: calibration problems that a finalist solves, which decide between the finalists."
    )
    table = Table("All splits that were built and measured", columns, rows, note, (0,),
                  [n for n, one in enumerate(candidates) if one["chosen"]])  # fmt: skip
    data = {"x": "layers", "y": "KL, nats per token", "series": series, "whole_x": True}
    return Chart("candidates", "lines", "Which split of the budget costs least", data, note, table)


def _point(one: Json) -> dict[str, Any]:
    tests = "" if one["task_total"] is None else f" ({one['task_passed']}/{one['task_total']})"
    return {"x": one["layers"], "y": one["kl_search"], "text": f"{one['width']}{tests}"}


def _row(one: Json) -> list[str]:
    tests = NONE if not one["task_total"] else f"{one['task_passed']} of {one['task_total']}"
    flops = quantity(one["flops_per_token"], "FLOP")
    return [
        f"{one['layers']} × {count(one['width'])}" + (", chosen" if one["chosen"] else ""),
        count(one["parameters"]), percent(one["removed_fraction"]), flops,
        number(one["kl_search"]), number(one["kl"]), number(one["kl_answer"]), tests,
    ]  # fmt: skip


def _path(path: list[Json]) -> Chart:
    points = [{"x": n, "y": one["kl"], "text": f"layer {one['removed']}"} for n, one in enumerate(path, 1)]
    note = "plan.json: each step removes the layer whose removal raises the KL least."
    table = Table("The path of the layer search", ["layers removed", "removed", "KL, nats per token"],
                  [[str(n), str(one["removed"]), number(one["kl"])] for n, one in enumerate(path, 1)], note)  # fmt: skip
    data = {"x": "layers removed", "y": "KL, nats per token", "whole_x": True,
            "series": [{"label": "greedy path", "style": "accent", "line": True, "points": points}]}  # fmt: skip
    return Chart("layer-path", "lines", "What each further layer costs", data, note, table)
