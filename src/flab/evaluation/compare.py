"""The paired comparison of two runs: for each common task, what the second kept of the first, and whether chance explains it.

Counts and McNemar's p compare the first sample of each item, because further samples have no counterpart. Rates, retention
and differences are over all samples; their intervals are over items. Only ``results.json`` is read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flab.errors import DataError, OptionError
from flab.evaluation.decide import MARGIN, decide
from flab.evaluation.metrics import (
    bootstrap_bleu_difference,
    bootstrap_mean_difference,
    mcnemar_exact,
    paired_counts,
    retention,
)
from flab.evaluation.record import RESULTS, RUN
from flab.evaluation.score import Rows, by_item
from flab.files import PathLike, as_path, read_json

Task = Mapping[str, Any]
# The fields of the identity that must agree; two models differ in the rest. All settings and versions must agree.
MUST_AGREE = {"identity": ("dtype", "device")}


def compare_runs(run_a: PathLike, run_b: PathLike, margin_points: float = 100 * MARGIN) -> dict[str, Any]:
    """Compare the second run with the first. ``differences`` lists what differs besides the model.

    ``margin_points`` is the drop of pass@1, in percentage points, up to which the second still counts as good as the first.

    Raises:
        DataError: a run is missing or unfinished, or the two share no task.
        OptionError: the margin is not a number of points.
    """
    if not 0 < margin_points < 100:
        raise OptionError(f"`margin_points`: got {margin_points:g}, allowed are points between 0 and 100; 2 is usual.")
    margin = margin_points / 100
    a = read_run(as_path(run_a))
    b = read_run(as_path(run_b))
    # Tasks are paired by the digest of their items: a renamed file is still the same task, a changed one is not.
    ours = {(task["kind"], task["sha256"]): task for task in b["tasks"]}
    shared = [
        (task, ours[task["kind"], task["sha256"]]) for task in a["tasks"] if (task["kind"], task["sha256"]) in ours
    ]
    if not shared:
        raise DataError(f"{run_a} and {run_b} share no task (the same items, by SHA-256); run both on the same files")
    return {
        "a": {"run": str(run_a), "identity": a["identity"], "fingerprint": a["fingerprint"]},
        "b": {"run": str(run_b), "identity": b["identity"], "fingerprint": b["fingerprint"]},
        "differences": [
            *differences(a, b),
            *(
                {"field": f"prompts of {one['name']}", "a": one["prompts_sha256"][:12], "b": two["prompts_sha256"][:12]}
                for one, two in shared
                if one["prompts_sha256"] != two["prompts_sha256"]
            ),
        ],
        "tasks": [compare_task(*pair, margin) for pair in shared],
        "pooled": pool(shared, margin),
        "only_in_a": _names_without(a, [pair[0]["name"] for pair in shared]),
        "only_in_b": _names_without(b, [pair[1]["name"] for pair in shared]),
        "robustness": _robustness(a, b, {one["name"]: two["name"] for one, two in shared}),
    }


def read_run(run: Path) -> dict[str, Any]:
    """Return the results of a run's folder, or of a file of results."""
    file = run / RESULTS if run.is_dir() else run
    if not file.is_file():
        hint = "run flab eval again to finish it" if (run / RUN).is_file() else "give a folder that flab eval wrote"
        raise DataError(f"{file} does not exist; {hint}")
    results = read_json(file)
    if missing := {"fingerprint", "settings", "identity", "tasks", "robustness"} - set(results):
        raise DataError(f"{file}: lacks {', '.join(sorted(missing))}; give results that flab eval wrote")
    if run.is_dir() and (run / RUN).is_file() and read_json(run / RUN).get("fingerprint") != results["fingerprint"]:
        raise DataError(
            f"{file} belongs to an earlier run than {RUN}: the newer run is unfinished; run flab eval again to finish it"
        )
    return results


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings, generator, precision and versions in which two runs differ besides their models."""
    pairs = [("generator", a.get("generator"), b.get("generator"))]
    for part in ("settings", "identity", "versions"):
        old = a.get(part) or {}
        new = b.get(part) or {}
        names = MUST_AGREE.get(part) or dict.fromkeys([*old, *new])
        pairs += [(f"{part}.{name}", old.get(name), new.get(name)) for name in names]
    return [{"field": name, "a": one, "b": two} for name, one, two in pairs if one != two]


def compare_task(a: Task, b: Task, margin: float = MARGIN) -> dict[str, Any]:
    """Compare one task of both runs: the figures of all kinds, and those that its kind adds."""
    made = {
        "name": a["name"],
        "kind": a["kind"],
        "sha256": a["sha256"],
        "num_items": a["summary"]["num_items"],
        "same_prompts": a["prompts_sha256"] == b["prompts_sha256"],
        **compare_passes(a["rows"], b["rows"], clusters=a.get("clusters"), margin=margin),
        "interval_95_a": a["summary"]["interval_95"],
        "interval_95_b": b["summary"]["interval_95"],
        "failures_a": a["summary"]["failures"],
        "failures_b": b["summary"]["failures"],
    }
    return made | KINDS[a["kind"]](a, b) if a["kind"] in KINDS else made


def pool(pairs: Sequence[tuple[Task, Task]], margin: float) -> dict[str, Any] | None:
    """Decide over the problems of all tasks together; None for fewer than two tasks.

    Perturbed tasks are left out because they ask the same problems again, and chains of thought because hardly any matches
    word for word. Problems with the same id or the same source count as a cluster.
    """
    pairs = [(a, b) for a, b in pairs if a["kind"] != "cot" and not a.get("perturbation")]
    if len(pairs) < 2:
        return None
    rates_a = list[float]()
    rates_b = list[float]()
    clusters = list[Hashable]()
    # Pass rates of all tasks in one row each, in the same order, with the clusters beside them.
    for a, b in pairs:
        first = by_item(a["rows"], "passed")
        second = by_item(b["rows"], "passed")
        rates_a += rates(first)
        rates_b += rates(second)
        clusters += cluster_names(list(first), a.get("clusters"))
    kept = retention(rates_a, rates_b, clusters)
    return {
        "tasks": [a["name"] for a, _ in pairs],
        "retention": asdict(kept) if kept is not None else None,
        **asdict(decide(rates_a, rates_b, clusters, margin)),
    }


def cluster_names(ids: Sequence[str], clusters: Mapping[str, str] | None) -> list[Hashable]:
    """Return the cluster of each item: its source if the file names one, else itself."""
    return [("source", clusters[one]) if clusters and one in clusters else one for one in ids]


def compare_passes(
    rows_a: Rows, rows_b: Rows, name: str = "passed", clusters: Mapping[str, str] | None = None, margin: float = MARGIN
) -> dict[str, Any]:
    """Compare a field of the rows: paired counts, p, both rates, their difference and ratio, and what they decide."""
    a = by_item(rows_a, name)
    b = by_item(rows_b, name)
    assert list(a) == list(b), "the same items in the same order: their digest is the same"
    counts = paired_counts([one[0] for one in a.values()], [one[0] for one in b.values()])
    # The bootstrap draws problems, or whole clusters of them. A problem's value is its pass rate over all its samples.
    rates_a = rates(a)
    rates_b = rates(b)
    names = cluster_names(list(a), clusters)
    kept = retention(rates_a, rates_b, names)
    return {
        **asdict(counts),
        "mcnemar_p": mcnemar_exact(counts.only_a, counts.only_b),
        "pass@1_a": sum(rates_a) / len(rates_a),
        "pass@1_b": sum(rates_b) / len(rates_b),
        "difference": asdict(bootstrap_mean_difference(rates_a, rates_b, names)),
        "retention": asdict(kept) if kept is not None else None,
        "decision": asdict(decide(rates_a, rates_b, names, margin)),
    }


def rates(found: Mapping[str, Sequence[bool]]) -> list[float]:
    """Return the pass rate of each item over its samples."""
    return [sum(one) / len(one) for one in found.values()]


def _compare_cot(a: Task, b: Task) -> dict[str, Any]:
    """Compare the BLEU of both, in both settings. The interval is that of the paper's setting, from the counts in the rows."""
    figures = {f"{name}_{run}": task["summary"][name] for name in BLEU for run, task in (("a", a), ("b", b))}
    found = bootstrap_bleu_difference(_bleu_counts(a["rows"]), _bleu_counts(b["rows"]))
    ratio = figures["bleu_paper_b"] / figures["bleu_paper_a"] if figures["bleu_paper_a"] else None
    return figures | {"bleu_paper_difference": asdict(found), "bleu_paper_retention": ratio}


def _bleu_counts(rows: Rows) -> list[list[float]]:
    """Return each item's counts as means over its samples, so that runs with different numbers of samples can be paired."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        found.setdefault(row["task_id"], []).append(row["bleu_counts"])
    return [[sum(column) / len(samples) for column in zip(*samples, strict=True)] for samples in found.values()]


BLEU = ("bleu_paper", "bleu_default")
# The figures that a kind adds; for predicted outputs the same ones of each of the two comparisons.
KINDS: dict[str, Callable[[Task, Task], dict[str, Any]]] = {
    "cot": _compare_cot,
    "output": lambda a, b: {n: compare_passes(a["rows"], b["rows"], n) for n in ("em_paper", "em_literal")},
}


def _names_without(run: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [task["name"] for task in run["tasks"] if task["name"] not in names]


def _robustness(a: Mapping[str, Any], b: Mapping[str, Any], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the drops of both models, for each pair of files that both runs measured."""
    fields = ("shared", "pass@1_clean", "pass@1_perturbed", "drop", "relative_drop", "mcnemar_p")
    theirs = {(row["clean"], row["perturbed"]): row for row in b["robustness"]}
    pairs = [(row, theirs.get((named.get(row["clean"]), named.get(row["perturbed"])))) for row in a["robustness"]]
    return [
        {"clean": one["clean"], "perturbed": one["perturbed"]}
        | {f"{name}_{run}": row[name] for name in fields for run, row in (("a", one), ("b", two))}
        for one, two in pairs
        if two is not None
    ]
