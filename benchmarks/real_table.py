"""What the stages of ``real_model.py`` found, as rows and as Markdown: one table for each task, one row for each model.

It reads the records and the evaluation runs alone; what is not measured yet is left blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sittings import found

from flab.evaluation.compare import compare_runs, read_run
from flab.evaluation.record import RESULTS

COLUMNS = (
    "model", "removed", "layers x width", "tokens", "pass@1 (95 %)", "kept (95 %)", "lost/won", "KL", "KL back",
    "answer tokens", "cut off", "seconds", "GiB",
)  # fmt: skip
FOOTNOTE = (
    "pass@1: greedy, Wilson interval. kept: over the original's pass@1. lost/won: problems that only the original / only this "
    "model solves. KL: nats per token from the original, cut to this model's vocabulary, to this model; KL back: the other "
    "way. answer tokens: mean. cut off: fraction of the answers that reached the longest length. seconds and GiB: of the "
    "stage that made the model, GiB at its peak. block-influence, static and activation have flab's vocabulary."
)


def collect(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """All rows, in the order of the models' names; ``original`` is the one that the others are paired with."""
    return {"models": [row_of(out, name) for name in names]}


def row_of(out: Path, name: str) -> dict[str, Any]:
    """What is known of one model: how it was made, its KL, and its figures for each task."""
    stages = {kind: found(out, f"{kind} {name}") for kind in ("cut", "recover", "kl", "eval")}
    recovered = stages["recover"]
    sizes = stages["cut"] or (found(out, f"cut flab-{name.partition('-')[2]}") if recovered is not None else None)
    made = recovered or stages["cut"]
    return {
        "name": name,
        "made": None if made is None else made["result"],
        "sizes": None if sizes is None else sizes["result"],
        "kl": None if stages["kl"] is None else stages["kl"]["result"],
        "tasks": tasks_of(out, name) if stages["eval"] is not None else {},
        "stages": {kind: costs(record) for kind, record in stages.items() if record is not None},
    }


def costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """When a stage was done and what it took."""
    return {name: record[name] for name in ("finished", "seconds", "peak_bytes", "peak_method", "peak_device_bytes")}


def tasks_of(out: Path, name: str) -> dict[str, Any]:
    """The figures of each task, paired with the original's where that is measured."""
    run = out / "eval" / name
    figures = {task["name"]: answers(task) for task in read_run(run)["tasks"]}
    if name != "original" and (out / "eval" / "original" / RESULTS).is_file():
        for pair in compare_runs(out / "eval" / "original", run)["tasks"]:
            kept = {"retention": pair["retention"], "difference": pair["difference"], "mcnemar_p": pair["mcnemar_p"]}
            figures[pair["name"]] |= kept | {"lost": pair["only_a"], "won": pair["only_b"]}
    return figures


def answers(task: Mapping[str, Any]) -> dict[str, Any]:
    """What one model's answers to one task come to."""
    summary = task["summary"]
    names = ("pass@1", "passed", "total", "interval_95", "failures")
    tokens = sum(row["num_tokens"] for row in task["rows"])
    return {name: summary[name] for name in names} | {
        "mean_tokens": tokens / summary["total"],
        "cut_off": summary["num_truncated"] / summary["total"],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """All tables and the footnote."""
    tasks = list(dict.fromkeys(task for row in report["models"] for task in row["tasks"]))
    parts = [table(report, task) for task in tasks]
    excluded = [f"{name}: {count}" for name, count in report.get("excluded", {}).items()]
    notes = [f"Problems left out because the calibration rows hold them: {', '.join(excluded)}."] if excluded else []
    return "\n\n".join([*parts, " ".join([FOOTNOTE, *notes])]) + "\n"


def table(report: Mapping[str, Any], task: str) -> str:
    """One task's table."""
    total = next(row["tasks"][task]["total"] for row in report["models"] if task in row["tasks"])
    lines = [f"## {task} ({total} problems)", "", _line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + [_line(cells(row, row["tasks"].get(task))) for row in report["models"]])


def cells(row: Mapping[str, Any], figures: Mapping[str, Any] | None) -> list[str]:
    """One line of a table."""
    sizes, kl = row["sizes"], row["kl"]
    stage = row["stages"].get("recover") or row["stages"].get("cut")
    kept = figures.get("retention") if figures else None
    return [
        row["name"],
        f"{sizes['removed_fraction']:.3f}" if sizes else "",
        f"{sizes['layers']} x {sizes['width']:,}" if sizes else "",
        f"{sizes['vocabulary']:,}" if sizes else "",
        _between(figures["pass@1"], figures["interval_95"]) if figures else "",
        _between(kept["ratio"], (kept["low"], kept["high"])) if kept else "",
        f"{figures['lost']}/{figures['won']}" if figures and "lost" in figures else "",
        f"{kl['kl']:.4f}" if kl else "",
        f"{kl['kl_back']:.4f}" if kl else "",
        f"{figures['mean_tokens']:.0f}" if figures else "",
        f"{figures['cut_off']:.2f}" if figures else "",
        f"{stage['seconds']:,.0f}" if stage else "",
        f"{(stage['peak_device_bytes'] or stage['peak_bytes']) / 2**30:.1f}" if stage else "",
    ]


def _between(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.2f}–{interval[1]:.2f})"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"
