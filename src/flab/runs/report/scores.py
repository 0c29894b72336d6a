"""Show the scores of each model on each task, paired with the original, and under perturbation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flab.runs.report.blocks import Block, Chart, Charts, Gap, Heading, Table
from flab.runs.report.inputs import MODELS, ORIGINAL, AbsentError, Inputs, results_of
from flab.runs.report.words import NONE, between, name_of, number, percent, points, probability, rate

Json = Mapping[str, Any]

SUMMARY = ("pass@1", "passed", "total", "num_items", "num_samples", "interval_95", "failures", "num_truncated")
EXTRA = ("bleu_paper", "bleu_default", "em_paper", "em_literal")
CHANCE = 0.05  # McNemar's p below this counts as significant


def tasks(inputs: Inputs) -> list[dict[str, Any]]:
    """Return every unperturbed task, with an entry for each model that was evaluated on it."""
    if not inputs.results:
        raise AbsentError(
            inputs.earlier(*map(results_of, MODELS))
            or "no model was measured: `flab run RECIPE -o RUN` resumes where it stopped"
        )
    made: dict[str, dict[str, Any]] = {}
    for name in inputs.names:
        for task in inputs.results.get(name, {"tasks": []})["tasks"]:
            if task["perturbation"] is None:
                # The tasks of all models are gathered. A model that was not evaluated on a task has no entry in it.
                facts = {part: task[part] for part in ("name", "kind", "sha256")}
                made.setdefault(task["name"], facts | {"models": []})["models"].append(_model(inputs, name, task))
    return list(made.values())


def _model(inputs: Inputs, name: str, task: Json) -> dict[str, Any]:
    summary = task["summary"]
    figures = {part: summary.get(part) for part in SUMMARY} | {n: summary[n] for n in EXTRA if n in summary}
    more = {n: value for n, value in summary.items() if n.startswith("pass@") and n != "pass@1"}
    return {"name": name, **figures, **more, "paired": _paired(inputs.pairs.get(name), task["name"])}


def _paired(pair: Json | None, task: str) -> dict[str, Any] | None:
    found = next((one for one in (pair or {"tasks": []})["tasks"] if one["name"] == task), None)
    if found is None:
        return None
    return {
        "both": found["both"], "lost": found["only_a"], "won": found["only_b"], "neither": found["neither"],
        "mcnemar_p": found["mcnemar_p"], "retention": found["retention"], "difference": found.get("difference"),
        "same_prompts": found.get("same_prompts"),
    }  # fmt: skip


def main_task(tasks: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Return the task of the verdict: the first of kind code or, if there is none, the first."""
    tasks = tasks or []
    return next((task for task in tasks if task["kind"] == "code"), tasks[0] if tasks else None)


def judged(paired: Json | None) -> str | None:
    """Return ``worse`` if the interval or p shows a loss, ``better`` only if p shows a gain, otherwise ``open``."""
    if paired is None:
        return None
    kept = paired["retention"]
    beyond = paired["mcnemar_p"] < CHANCE
    # This is asymmetric on purpose. Either measure is enough to report a loss, but a gain needs a significant p.
    if (kept is not None and kept["high"] < 1) or (beyond and paired["lost"] > paired["won"]):
        return "worse"
    return "better" if beyond and paired["won"] > paired["lost"] else "open"


def robustness(inputs: Inputs) -> list[dict[str, Any]]:
    """Return what each perturbation costs each model, on the problems that both files contain."""
    names = ("shared", "pass@1_clean", "pass@1_perturbed", "drop", "relative_drop", "only_clean", "only_perturbed",
             "mcnemar_p")  # fmt: skip
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for model, results in inputs.results.items():
        for row in results["robustness"]:
            key = {part: row[part] for part in ("clean", "perturbed")}
            entry = made.setdefault((row["clean"], row["perturbed"]), key | {"models": []})
            entry["models"].append({"name": model} | {name: row.get(name) for name in names})
    if not made:
        raise AbsentError(
            "no perturbation was measured: `perturb: [all]` under `evaluate:` in the recipe measures them, or "
            "`flab eval MODEL --task FILE --perturb all`"
        )
    return list(made.values())


def overlaps(inputs: Inputs) -> list[dict[str, str]]:
    """Return warnings about problems that share text with calibration or training data: ``task``, ``data``, ``warning``."""
    found = [row for results in inputs.results.values() for row in results.get("contamination") or []]
    rows = dict.fromkeys((row["task"], name_of(row["data"]), row["warning"]) for row in found if row["warning"])
    return [dict(zip(("task", "data", "warning"), row, strict=True)) for row in rows]


def blocks(report: Json) -> Iterator[Block]:
    """Return charts of rates and retention, then tables of all figures, failures and robustness."""
    found = report["tasks"]
    if not found:
        yield Gap("the results contain no task")
        return
    yield Charts([_rates(found), *_kept(found)])
    yield from (Gap(report["missing"][part]) for part in ("results", "paired") if part in report["missing"])
    yield _failures(found)
    if report["overlaps"]:
        rows = [[row["task"], row["data"], row["warning"]] for row in report["overlaps"]]
        yield Table("Problems that share text with what a model has read", OVERLAP, rows, words=(0, 1, 2))
    yield Heading("Robustness")
    yield _drops(report["robustness"]) if report["robustness"] else Gap(report["missing"]["robustness"])


OVERLAP = ("task", "data", "flab eval warns")


def each(found: list[Json]) -> Iterator[tuple[Json, Json]]:
    """Return all models of all tasks, with their task."""
    return ((task, model) for task in found for model in task["models"])


def _rates(found: list[Json]) -> Chart:
    rows = [{"group": task["name"], "label": one["name"], "value": one["pass@1"], "low": one["interval_95"][0],
             "high": one["interval_95"][1], "style": STYLES.get(one["name"], "ink"),
             "text": f"{one['passed']}/{one['total']}"} for task, one in each(found)]  # fmt: skip
    columns = ["task, model", "passed", "pass@1", "95 %", "cut off", "more"]
    lines = [[f"{task['name']}, {one['name']}", f"{one['passed']} of {one['total']}", rate(one["pass@1"]),
              between(one["interval_95"]), str(one["num_truncated"]), _more(one)] for task, one in each(found)]  # fmt: skip
    note = (
        "results.json: pass@1; for chains of thought and predictions, the fraction of exact matches. Whiskers: 95 % intervals "
        "(Wilson for one sample, otherwise bootstrap over problems)."
    )
    table = Table("What each model passes", columns, lines, note, words=(0, 5))
    return Chart("rates", "forest", "What each model passes", {"rows": rows, "low": 0.0, "high": 1.0}, note, table)


STYLES = {ORIGINAL: "muted", "pruned": "second", "recovered": "accent"}


def _more(one: Json) -> str:
    names = [name for name in one if name in EXTRA or (name.startswith("pass@") and name != "pass@1")]
    return ", ".join(f"{name} {number(one[name], 4)}" for name in names)


def _kept(found: list[Json]) -> list[Chart]:
    """Return the chart of the retention of each smaller model on each task, if the runs were compared."""
    paired = [(task, one, one["paired"]) for task, one in each(found) if one["paired"]]
    rows = [{"group": task["name"], "label": one["name"], "value": pair["retention"]["ratio"],
             "low": pair["retention"]["low"], "high": pair["retention"]["high"], "style": STYLES.get(one["name"], "ink"),
             "text": f"−{pair['lost']} +{pair['won']}"} for task, one, pair in paired if pair["retention"]]  # fmt: skip
    if not rows:
        return []
    columns = ["task, model", "kept", "95 %", "lost", "won", "both", "neither", "McNemar"]
    lines = [[f"{task['name']}, {one['name']}", *_retention(pair["retention"]), str(pair["lost"]), str(pair["won"]),
              str(pair["both"]), str(pair["neither"]), probability(pair["mcnemar_p"])] for task, one, pair in paired]  # fmt: skip
    note = (
        "compare-NAME.json: passes divided by the original's passes. Whiskers: 95 % bootstrap intervals over problems. Minus: "
        "problems that only the original passes; plus: problems that only the smaller model passes. McNemar's p is exact and "
        "two-sided."
    )
    table = Table("What is kept of the original's passes", columns, lines, note)
    # The axis begins near the lowest whisker. An axis from zero would hide the differences that matter.
    lowest = min(row["low"] for row in rows)
    data = {
        "rows": rows,
        "low": max(0.0, lowest - 0.05),
        "high": max(1.05, *(row["high"] for row in rows)),
        "rule": 1.0,
    }
    return [Chart("retention", "forest", "What is kept of the original's passes", data, note, table)]


def _retention(kept: Json | None) -> tuple[str, str]:
    return (
        (NONE, NONE) if kept is None else (percent(kept["ratio"]), f"{percent(kept['low'])} to {percent(kept['high'])}")
    )


def _failures(found: list[Json]) -> Table:
    classes = list(dict.fromkeys(name for _, one in each(found) for name in one["failures"] or {}))
    rows = [[f"{task['name']}, {one['name']}", *(str((one["failures"] or {}).get(name, NONE)) for name in classes)]
            for task, one in each(found)]  # fmt: skip
    note = "results.json: samples that did not pass, by class; the classes are those of `docs/tasks.md` and `docs/sandbox.md`."
    return Table("How answers fail", ["task, model", *classes], rows, note)


def _drops(found: list[Json]) -> Table:
    columns = ["perturbed, model", "shared", "pass@1", "perturbed", "change", "lost", "won", "McNemar"]
    rows = [
        [
            f"{entry['perturbed']}, {one['name']}", str(one["shared"]), rate(one["pass@1_clean"]),
            rate(one["pass@1_perturbed"]), points(-one['drop']), str(one["only_clean"]),
            str(one["only_perturbed"]), probability(one["mcnemar_p"]),
        ]
        for entry in found for one in entry["models"]
    ]  # fmt: skip
    note = (
        "results.json, on the problems to which a perturbation applies. Change: percentage points of pass@1. Lost: passed only "
        "without it."
    )
    return Table("What a perturbation costs", columns, rows, note)
