"""Tables of ``flab data`` and ``flab recover`` for people, on stderr. Reads only the JSON that the library returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flab.cli.show import show_check
from flab.progress import add, console, say, table_of


def show_data(report: Mapping[str, Any]) -> None:
    """What each step left, and whose words the rows are in."""
    table = table_of("Steps", ["step", "left", "found"])
    for step in report["steps"]:
        found = ", ".join(f"{name} {n}" for name, n in step.items() if name not in ("step", "left"))
        add(table, step["step"], step["left"], found or "-")
    console.print(table)
    for name in ("kinds", "sources"):
        say(f"{name}: " + ", ".join(f"{kind} {n}" for kind, n in report[name].items()))
    say(f"{report['rows']} rows in {report['output']} (strategy {report['making']['strategy']})")


def show_recovery(report: Mapping[str, Any]) -> None:
    """The held-out terms before and after, what it cost, and the verdict of the check."""
    before, after = report["held_out"]["before"], report["held_out"]["after"]
    table = table_of("Held-out rows, nats per token", ["", "before", "after", "change"])
    for name in ("loss", "kl", "cross_entropy"):
        if name in after:
            change = f"{after[name] / before[name] - 1:+.1%}" if before[name] else "-"
            add(table, name.replace("_", " "), f"{before[name]:.4f}", f"{after[name]:.4f}", change)
    console.print(table)
    early = ", stopped early" if report["stopped_early"] else ""
    steps = f"{report['steps']} steps{early}, the best was {report['chosen_step']}"
    cost = f"{report['tokens']:,} tokens in {report['seconds']:.0f} s on {report['devices']} {report['device']}"
    say(f"{report['method']} training, learning rate {report['learning_rate']:g}: {steps}; {cost}")
    memory = report["peak_memory"]
    say(
        f"peak memory: {memory['measured_bytes'] / 2**30:.2f} GiB ({memory['method']}), {memory['predicted_bytes'] / 2**30:.2f} "
        "GiB by formula"
    )
    show_check(report["check"])
    say(f"saved {report['output']}")


def show_summary(summary: Mapping[str, Any]) -> None:
    """One row for each model: its size, and what it passes of each task, paired with the original."""
    names = list(summary["models"][0]["tasks"])
    table = table_of("The whole way", ["model", "parameters", "MB", *names])
    original = summary["models"][0]
    for row in summary["models"]:
        share = 1 - row["parameters"] / original["parameters"]
        size = f"{row['parameters']:,}" + (f" (-{share:.1%})" if share else "")
        add(table, row["name"], size, f"{row['bytes'] / 1e6:.2f}", *(_outcome(row["tasks"][name]) for name in names))
    console.print(table)
    say("in a cell: passed of all (95 %); kept of the original's; problems only the original / only this model passes.")
    seconds = {name: value for name, value in summary["seconds"].items() if name != "now"}
    say("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    for name, gain in summary["stages"].get("measure", {}).get("gains", {}).items():
        say(f"{name.replace('_', ' ')}: {gain['value']:.2f} times better ({gain['low']:.2f}-{gain['high']:.2f}), "
            f"{gain['of_predicted']:.2f} of what its bytes or operations predict")  # fmt: skip
    say(
        f"this run took {summary['seconds']['now']:.0f} s; models, data, answers and comparisons are in {summary['output']}, "
        "its report is report.html there"
    )


def _outcome(task: Mapping[str, Any]) -> str:
    low, high = task["interval_95"]
    passed = f"{task['passed']}/{task['total']} ({low:.2f}-{high:.2f})"
    if "only_a" not in task:
        return passed
    kept = task["retention"]
    ratio = "-" if kept is None else f"{kept['ratio']:.3f}"
    return f"{passed}\nkept {ratio}, {task['only_a']}/{task['only_b']}"
