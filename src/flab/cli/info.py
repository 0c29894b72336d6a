"""``flab info``, and the output of ``--dry-run``: the facts of a model, and the costs of a command before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model
from flab.cli.options import Json, Model, emit, takes
from flab.data.samples import read_samples
from flab.models.options import Options
from flab.progress import add, duration, reply, say, show, table_of

INFO_EXAMPLE = "Example: flab info MODEL --calibration rows.jsonl"
Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="Text to prune for. flab counts the tokens that this text needs.")
]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", metavar=" ", help="Only estimate the time, memory and disk of each stage."),
]


@takes(options=Options, without=("device", "dtype", "overwrite", "unsandboxed", "in_memory"))
def info(model: Model, options: Any, calibration: Calibration = None, json_: Json = False) -> None:
    """Show a model's parts and the budgets it can reach.

    Also shows its family, and the memory that each command needs.
    """
    check_model(model)
    if calibration is not None:
        read_samples(calibration)
    from flab.runs.info import info as describe

    found = describe(model, options, calibration)
    emit(found) if json_ else show_info(found, calibration is not None)


def show_info(found: Mapping[str, Any], counted: bool = False) -> None:
    """Print sizes, parts, budgets and memory."""
    sizes = found["sizes"]
    tokenizer = found["tokenizer"]
    reply(f"{found['path']}: {found['family']}, {found['parameters']:,} parameters, {found['stored_dtype']}")
    experts = f" in {sizes['experts']} experts" if sizes["experts"] else ""
    reply(
        f"{sizes['layers']} layers, hidden size {sizes['hidden']:,}, FFN width {sizes['width']:,}{experts}, "
        f"{sizes['heads']} heads "
        f"({sizes['key_value_heads']} for keys and values), context {sizes['context'] or 'not named'}"
    )
    adds = f"puts {' '.join(tokenizer['adds'])} before a text" if tokenizer["adds"] else "adds nothing to a text"
    chat = "with a chat template" if tokenizer["chat_template"] else "no chat template"
    reply(
        f"tokenizer: {tokenizer['kind']}, {tokenizer['tokens']:,} tokens, {tokenizer['special']} special; {adds}; {chat}"
    )
    table = table_of("Parts", ["part", "parameters", "share"])
    for part in found["parts"]:
        add(table, part["name"], f"{part['parameters']:,}", f"{part['share']:.1%}")
    show(table)
    show_budgets(found["budgets"])
    reply(f"at most {found['most_removable']:.0%} can be removed.")
    if not counted:
        reply(
            "tokens: the most that planning keeps. A text that needs fewer leaves room for more neurons: give --calibration."
        )
    table = table_of("Loads in", ["program", "how"])
    loads = found["loads_in"]
    add(table, "transformers", loads["transformers"]["tokenizer"])
    add(table, "vLLM", f"tensor parallel {', '.join(map(str, loads['vllm']['tensor_parallel_sizes']))}")
    add(table, "llama.cpp", "k-quants" if loads["k-quants"]["ok"] else f"no k-quants: {loads['k-quants']['why']}")
    show(table)
    table = table_of("Memory at the peak, by formula", ["", "GB"])
    for name, size in found["memory"].items():
        add(table, name, f"{size / 1e9:.2f}")
    show(table)
    reply(
        "weights: in the files. plan, eval and recover: the whole program with default settings. flab plan --dry-run counts your "
        "texts and options, and so do the other commands."
    )
    show_planning(found["planning"], found["memory"]["plan"])
    for warning in found["warnings"]:
        say(f"warning: {warning}")


def show_planning(planning: Mapping[str, Any], peak: int) -> None:
    """Print whether planning would hold the whole model or one layer at a time, and the option for the other."""
    whole = f"{planning['whole_model_bytes'] / 1e9:.2f} GB"
    there = planning["free_bytes"]
    free = "the system does not say how much is free" if there is None else f"{there / 1e9:.2f} GB are free"
    if planning["in_memory"] == "layer":
        reply(
            f"Planning would hold one layer at a time: about {peak / 1e9:.2f} GB at the peak. The whole model alone takes "
            f"{whole}, and {free}. flab plan --in-memory model holds the whole model."
        )
    else:
        reply(
            f"Planning would hold the whole model, which takes {whole}: about {peak / 1e9:.2f} GB at the peak, and {free}. "
            "flab plan --in-memory layer needs less."
        )


def show_budgets(budgets: Sequence[Mapping[str, Any]]) -> None:
    """Print what each budget leaves, and how much each part gives."""
    columns = ["remove", "tokens", "deepest split", "shallowest", "from tokens", "from width"]
    table = table_of("Budgets", columns)
    for row in budgets:
        if not row["reachable"]:
            add(table, f"{row['remove']:.0%}", "-", "not reachable", "-", "-", "-")
            continue
        deepest, shallowest = (" x ".join(f"{n:,}" for n in row[name]) for name in ("deepest", "shallowest"))
        shares = [f"{row[name]:.0%}" for name in ("share_vocabulary", "share_width")]
        add(table, f"{row['remove']:.0%}", f"{row['vocabulary']:,}", deepest, shallowest, *shares)
    show(table)


# What each stage of planning does, in the words of docs/method.md, section 5.
EXPLAINED = {
    "vocabulary": "chooses the tokens that stay",
    "search": "builds splits of the budget (layers x FFN width) and compares their KL",
    "finalists": "builds the best splits again on more text, and tests decide",
    "winner": "builds the chosen split on all calibration tokens",
}
ASSUMED = {
    "tokens": "{:,} calibration tokens",
    "split": "the winner has {:,} tokens, {:,} layers and an FFN width of {:,}",
    "refit": "refit {}",
    "candidates": "the search builds {:,} splits",
    "answers": "{:,} answers",
    "rows": "{:,} rows",
    "method": "{} training",
}
NO_RIVAL = "the search builds no split, because only the winner is left"


def show_estimate(report: Mapping[str, Any], json_: bool) -> None:
    """Print the stages, the sum and the assumptions, or one JSON object if asked for."""
    if json_:
        emit(report)
        return
    table = table_of("Estimate; nothing was started", ["stage", "time", "memory GB", "disk MB"])
    for stage in report["stages"]:
        bound = "<= " if stage["at_most"] else ""
        disk = f"{stage['disk_bytes'] / 1e6:,.1f}" if stage["disk_bytes"] else "-"
        add(table, stage["name"], bound + duration(stage["seconds"]), f"{stage['memory_bytes'] / 1e9:.2f}", disk)
    show(table)
    reply(
        f"in total {duration(report['seconds'])}, {report['memory_bytes'] / 1e9:.2f} GB at the peak, "
        f"{report['disk_bytes'] / 1e6:,.1f} MB on disk"
    )
    named = {stage["name"].rpartition(": ")[2] for stage in report["stages"]}
    if explained := [f"{name} {does}" for name, does in EXPLAINED.items() if name in named]:
        reply(f"{'; '.join(explained)}.")
    assumed = "; ".join(_assumed(name, value) for name, value in report["assumed"].items())
    reply(f"assumed: {assumed}. The rates were just measured on this machine; other work on it changes them.")


def _assumed(name: str, value: Any) -> str:
    if name == "candidates" and not value:
        return NO_RIVAL
    return ASSUMED[name].format(*(value if isinstance(value, list) else [value]))
