"""Tables of ``flab eval`` and ``flab compare`` for people, on stderr. Reads only the JSON that the library returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flab.progress import add, console, say, table_of


def show_run(report: Mapping[str, Any], output: str | None) -> None:
    """One row for each task, then failures, robustness and warnings."""
    table = table_of("Tasks", ["task", "kind", "passed", "pass@1", "95 %", "more", "references", "cut off"])
    for task in report["tasks"]:
        one = task["summary"]
        add(table, task["name"], task["kind"], f"{one['passed']}/{one['total']}", f"{one['pass@1']:.3f}",
             _interval(one["interval_95"]), _more(one), _gold_cell(task["gold"]), one["num_truncated"])  # fmt: skip
    console.print(table)
    for task in report["tasks"]:
        if task["summary"]["failures"]:
            say(f"failures of {task['name']}: {_counts(task['summary']['failures'])}")
        if task["skipped"]:
            say(f"{task['name']}: {task['skipped']} problems have nothing to change and are left out")
    show_robustness(report["robustness"])
    for row in report.get("contamination", []):
        if row["warning"]:
            say(f"warning: {row['task']} and {row['data']}: {row['warning']}")
    levels = {task["summary"]["sandbox_level"] for task in report["tasks"] if "sandbox_level" in task["summary"]}
    say(
        "; ".join(
            [*(f"sandbox: {level}" for level in levels), f"results in {output}" if output else "nothing was written"]
        )
    )


def _interval(pair: Sequence[float]) -> str:
    return f"{pair[0]:.3f}-{pair[1]:.3f}"


def _counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in failures.items()) or "-"


def _more(summary: Mapping[str, Any]) -> str:
    """The figures that only this kind has."""
    names = [
        n for n in summary if n in ("bleu_paper", "bleu_default", "em_paper", "em_literal") or n.startswith("pass@")
    ]
    return ", ".join(f"{n} {summary[n]:.{2 if 'bleu' in n else 3}f}" for n in names if n != "pass@1") or "-"


def _gold_cell(gold: Mapping[str, Any] | None) -> str:
    return "-" if gold is None else f"{gold['passed']}/{gold['total']}"


def show_robustness(rows: Sequence[Mapping[str, Any]]) -> None:
    """What each perturbation costs, on the problems that both files hold."""
    if not rows:
        return
    table = table_of("Robustness", ["perturbed", "of", "shared", "pass@1", "perturbed", "drop", "lost/won", "p"])
    for row in rows:
        add(table, row["perturbed"], row["clean"], row["shared"], f"{row['pass@1_clean']:.3f}",
             f"{row['pass@1_perturbed']:.3f}", f"{row['drop']:+.3f}", f"{row['only_clean']}/{row['only_perturbed']}",
             f"{row['mcnemar_p']:.3g}")  # fmt: skip
    console.print(table)


def show_gold(report: Mapping[str, Any]) -> None:
    """References that pass, and those that do not, by class."""
    for task in report["tasks"]:
        say(f"{task['name']}: {task['passed']}/{task['total']} references pass")
        for task_id, kind in task["failed"].items():
            say(f"  {task_id}: {kind}")
    say(f"sandbox: {report['sandbox_level']}")


def show_comparison(report: Mapping[str, Any]) -> None:
    """What differs besides the model, then one row for each task and what its kind adds."""
    say(f"A: {report['a']['run']} ({report['a']['identity'].get('path', '-')})")
    say(f"B: {report['b']['run']} ({report['b']['identity'].get('path', '-')})")
    for row in report["differences"]:
        say(f"WARNING, not the same in both: {row['field']}: {row['a']} in A, {row['b']} in B")
    columns = ["task", "A", "B", "B - A (95 %)", "kept (95 %)", "both", "only A", "only B", "neither", "p"]
    table = table_of("Passed by A and by B", columns)
    for task in report["tasks"]:
        for name, one in _passes(task):
            add(table, name, f"{one['pass@1_a']:.3f}", f"{one['pass@1_b']:.3f}", _difference(one["difference"]),
                 _kept(one["retention"]), one["both"], one["only_a"], one["only_b"], one["neither"],
                 f"{one['mcnemar_p']:.3g}")  # fmt: skip
    console.print(table)
    for task in report["tasks"]:
        for name, one in _passes(task) if task["kind"] != "cot" else ():
            say(f"{name}: {decision_line(one['decision'])}")
    if report["pooled"] is not None:
        say(f"{' and '.join(report['pooled']['tasks'])} together: {decision_line(report['pooled'])}")
    for task in report["tasks"]:
        _show_rest(task)
    _show_drops(report["robustness"])
    for run, other in (("a", "B"), ("b", "A")):
        if report[f"only_in_{run}"]:
            say(f"not in {other}, or other items there: {', '.join(report[f'only_in_{run}'])}")


VERDICTS = {
    "superior": "B is better than A",
    "non-inferior": "B is as good as A within {margin}",
    "inferior": "B is worse than A by more than {margin}",
    "undecided": "undecided whether B is as good as A within {margin}",
}


def decision_line(found: Mapping[str, Any]) -> str:
    """Say what was decided, from which interval, and which difference the data would have found."""
    points = {name: 100 * found[name] for name in ("difference", "low", "high", "detectable")}
    verdict = VERDICTS[found["verdict"]].format(margin=f"{100 * found['margin']:g} points")
    clusters = f" from {found['num_clusters']} sources" if found["num_clusters"] < found["num_items"] else ""
    return (
        f"{verdict}: B - A is {points['difference']:+.1f} points ({points['low']:+.1f} to {points['high']:+.1f}); "
        f"{found['num_items']} problems{clusters} find differences from {points['detectable']:.1f} points on"
    )


def _passes(task: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(task["name"], task), *((f"{task['name']} {n}", task[n]) for n in ("em_paper", "em_literal") if n in task)]


def _difference(value: Mapping[str, float], digits: int = 3) -> str:
    return f"{value['value']:+.{digits}f} ({value['low']:+.{digits}f} to {value['high']:+.{digits}f})"


def _kept(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['ratio']:.3f} ({value['low']:.3f}-{value['high']:.3f})"


def _show_rest(task: Mapping[str, Any]) -> None:
    if "bleu_paper_a" in task:
        say(
            f"{task['name']}: BLEU {task['bleu_paper_a']:.2f} and {task['bleu_paper_b']:.2f}, "
            f"B - A {_difference(task['bleu_paper_difference'], 2)}; "
            f"sacrebleu's default {task['bleu_default_a']:.2f} and {task['bleu_default_b']:.2f}"
        )
    say(f"failures of {task['name']}: A {_counts(task['failures_a'])}; B {_counts(task['failures_b'])}")


def _show_drops(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    table = table_of("Drop under perturbation", ["perturbed", "shared", "A", "drop of A", "B", "drop of B"])
    for row in rows:
        add(table, row["perturbed"], row["shared_a"], f"{row['pass@1_clean_a']:.3f}", f"{row['drop_a']:+.3f}",
             f"{row['pass@1_clean_b']:.3f}", f"{row['drop_b']:+.3f}")  # fmt: skip
    console.print(table)
