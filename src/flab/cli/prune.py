"""``flab plan``, ``apply``, ``prune`` and ``check``: the commands that cut, and what they print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model, check_planning, check_source
from flab.cli.info import DryRun, show_estimate
from flab.cli.options import KEEPS, Json, Model, Output, emit, takes
from flab.errors import FlabError
from flab.files import as_path, check_file, check_folder
from flab.models.options import Options
from flab.progress import add, reply, say, show, table_of
from flab.pruning.journal import is_uncleared, working_folder
from flab.pruning.recipe import Recipe

PLAN_EXAMPLE = "Example: flab plan MODEL --remove 0.22 --calibration rows.jsonl -o plan.json"
APPLY_EXAMPLE = "Example: flab apply MODEL plan.json -o SMALLER"
PRUNE_EXAMPLE = "Example: flab prune MODEL --remove 0.22 --calibration rows.jsonl -o SMALLER"
CHECK_EXAMPLE = "Example: flab check SMALLER --against MODEL"
# What a KL meant for a real model, so that a user can judge one: the sum of both KLs against pass@1 (docs/results.md).
REAL_KL = (
    "For comparison, Qwen2.5-Coder-1.5B without training: a total KL of 0.004 kept 0.98 of HumanEval's pass@1, 0.054 kept "
    "0.83 to 0.85, 0.104 kept 0.78, 0.146 kept 0.77, 0.170 kept 0.75, 0.287 kept 0.25, and 0.304 kept 0.49."
)


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Print what an interrupted planning of ``out`` leaves, and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        work = working_folder(out)
        if not work.is_dir():
            raise
        raise FlabError(f"interrupted: the progress of the plan is in {work}; the same command resumes.") from None


@takes(recipe=Recipe, options=Options)
def plan(
    model: Model,
    recipe: Any,
    options: Any,
    output: Output = Path("plan.json"),
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Decide what to remove and write the plan, without cutting.

    The refitted layers stay in PLAN.layers, where flab apply finds them. If the
    command is stopped, run it again to resume.
    """
    file = as_path(output)
    check_file(file, options.overwrite or is_uncleared(file), (model, *recipe.inputs))
    check_planning(model, recipe)
    if dry_run:
        from flab.runs.dry_run import estimate_plan

        show_estimate(estimate_plan(model, recipe, options, as_path(output)), json_)
        return
    from flab.pruning.pipeline import plan as make

    with resumable(file):
        decided = make(model, recipe, options, file)
    emit(decided.summary()) if json_ else show_plan(decided.summary(), f"plan written to {output}")


@takes(options=Options, without=("dtype", "unsandboxed", "in_memory"))
def apply(
    model: Model,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan written by flab plan.")],
    output: Output,
    options: Any,
    no_refit: Annotated[
        bool, typer.Option("--no-refit", metavar=" ", help="Only cut. This needs no calibration data.")
    ] = False,
    sibling: Annotated[
        bool,
        typer.Option(
            "--sibling",
            metavar=" ",
            help="Accept another model of the same architecture and vocabulary: keep the decisions and refit its own weights.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Carry out a plan and save the smaller model."""
    from flab.models.source import ModelFolder
    from flab.pruning.plan import Plan, is_replayed

    decided = Plan.read(as_path(plan_file))
    check_folder(as_path(output), options.overwrite, (model, plan_file))
    source = check_source(model)
    if isinstance(source, ModelFolder):
        is_replayed(decided, source, sibling)
    from flab.pruning.pipeline import apply as carry_out

    folder = carry_out(source, plan_file, output, options, refit=not no_refit, sibling=sibling)
    decided = Plan.read(folder / "plan.json")
    emit({"output": str(folder), **decided.summary()}) if json_ else reply(
        f"saved {folder}: run flab check to verify it"
    )


@takes(recipe=Recipe, options=Options, helps=KEEPS)
def prune(
    model: Model, recipe: Any, options: Any, output: Output, dry_run: DryRun = False, json_: Json = False
) -> None:
    """Plan, apply and check in one step.

    If it is stopped, run it again to resume.
    """
    folder = as_path(output)
    check_folder(folder, options.overwrite or is_uncleared(folder), (model, *recipe.inputs))
    check_planning(model, recipe)
    if dry_run:
        from flab.runs.dry_run import estimate_plan

        show_estimate(estimate_plan(model, recipe, options, as_path(output), prune=True), json_)
        return
    from flab.pruning.pipeline import prune as run

    with resumable(folder):
        report = run(model, folder, recipe, options)
    if json_:
        emit(report)
    else:
        show_plan(report, f"saved {report['output']} in {report['seconds']['total']:.0f} s")
        show_check(report["check"])
    exit_unless(report["check"]["ok"])


def check(
    folder: Annotated[str, typer.Argument(help="The folder to verify.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The original model, with which the folder is compared bit for bit."),
    ] = None,
    oldest: Annotated[
        str | None,
        typer.Option(
            "--oldest-python",
            metavar="PATH",
            help="Python of an environment with transformers 4.57, in which the folder is loaded too.",
        ),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ENGINES",
            help="Also load the folder in these engines (llama.cpp, ctranslate2, vllm, transformers-serve, separated by "
            "commas), and compare tokens and greedy answers with transformers.",
        ),
    ] = None,
    engines_python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Python of the environment with the engines. Default: flab's own."),
    ] = None,
    json_: Json = False,
) -> None:
    """Verify a folder in a fresh process.

    Loads the folder again, compares it with its plan and proof, and lists the
    programs that can load it. The exit code is 1 if a check fails.
    """
    # A wrong folder is the more likely mistake, and ``check`` itself has the message for it.
    if against is not None and as_path(folder).is_dir():
        check_model(against)
    from flab.pruning.check import check as verify

    named = tuple(name.strip() for name in engines.split(",")) if engines is not None else ()
    verdict = verify(folder, against, oldest, named, engines_python)
    emit(verdict) if json_ else show_check(verdict)
    exit_unless(verdict["ok"])


def exit_unless(ok: bool) -> None:
    """Exit with code 1 after a failed check."""
    if not ok:
        raise typer.Exit(1)


def show_plan(report: Mapping[str, Any], closing: str) -> None:
    """Print the candidates, the sizes before and after, the KL and the warnings."""
    show_candidates(report["candidates"])
    table = table_of("Before and after", ["", "before", "after", "removed"])
    body = report["body_removed_fraction"]
    table.add_row(
        "parameters",
        f"{report['parameters_before']:,}",
        f"{report['parameters_after']:,}",
        f"{report['removed_fraction']:.1%} (body {body:.1%})",
    )
    for name in (name for name in ("vocabulary", "layers", "experts", "expert_width", "width") if name in report):
        before = report[name]["before"]
        after = report[name]["after"]
        table.add_row(name.replace("_", " "), f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}")
    show(table)
    reply(
        f"KL of the cut and refit: {report['kl_nats_per_token']:.4f} nats per token; "
        f"of the vocabulary: {report['kl_vocabulary']:.5f}"
    )
    reply(REAL_KL)
    if "generality" in report:
        general = report["generality"]
        before, after = general["bits_per_byte_before"], general["bits_per_byte_after"]
        reply(f"other code ({general['text']}): {before:.3f} -> {after:.3f} bits per byte ({after / before - 1:+.1%})")
    for warning in report["warnings"]:
        say(f"warning: {warning}")
    reply(closing)


def show_candidates(candidates: Sequence[Mapping[str, Any]]) -> None:
    """Print every split that was built, and mark the chosen one. The table fits 80 columns."""
    inner = "experts" if any("experts" in row for row in candidates) else "width"
    columns = ["split", "removed", "search KL", "KL", "answers", "tests", "layers out"]
    table = table_of("Candidates", columns)
    for row in candidates:
        tests = f"{row['task_passed']}/{row['task_total']}" if row["task_total"] else "-"
        table.add_row(
            f"{row['layers']} x {row.get('experts', row['width'])}" + (" *" if row["chosen"] else ""),
            f"{row['removed_fraction']:.1%}",
            _number(row["kl_search"] if row["kl_search"] != row["kl"] else None),
            _number(row["kl"]),
            _number(row["kl_answer"]),
            tests,
            ", ".join(map(str, row["removed"])) or "-",
            style="bold" if row["chosen"] else None,
        )
    show(table)
    reply(
        f"*: chosen. A split is layers x {inner}. The KL is in nats per token: in the search, at the end, and on answers alone."
    )
    if len(candidates) == 1:
        reply(
            "The only split: it had no rival, so nothing was built to compare it with, and there is no KL of a search."
        )


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_check(verdict: Mapping[str, Any]) -> None:
    """Print every check with its outcome, then the programs that the folder loads in."""
    table = table_of("Checks in a fresh process", ["check", "outcome", "detail"])
    for line in verdict["checks"]:
        outcome = {True: "ok", False: "FAILED", None: "not checked"}[line["ok"]]
        add(table, line["name"], outcome, line["detail"])
    show(table)
    loads = verdict["loads_in"]
    table = table_of("Loads in", ["program", "", "how"])
    transformers = loads["transformers"]
    sizes = loads["vllm"]["tensor_parallel_sizes"]
    how = f"{transformers['how']}; {transformers['tokenizer']}"
    add(table, "transformers", "yes" if transformers["ok"] else "no", how)
    add(table, "vLLM", f"tensor parallel {', '.join(map(str, sizes))}", loads["vllm"]["how"])
    add(table, "llama.cpp", "needs", f"{loads['llama.cpp']['needs']} ({loads['llama.cpp']['how']})")
    add(table, "k-quants", "yes" if loads["k-quants"]["ok"] else "no", loads["k-quants"]["why"])
    for name, found in loads.get("quantised", {}).items():
        format_name = f"{name} (rows of {found['block']})"
        add(table, format_name, "in part" if found["falls_back"] else "whole", _fallback(found))
    show(table)
    if "engines" in verdict:
        show_engines(verdict["engines"])


def show_engines(engines: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the result of each engine that was run."""
    table = table_of("Compared with transformers", ["engine", "outcome", "detail"])
    for name, found in engines.items():
        if not found["ran"]:
            add(table, name, "not run", f"not installed ({found['why']}): by rules alone, above")
            continue
        if "why" in found:
            add(table, name, "FAILED", found["why"])
            continue
        texts = (
            "it has no tokenizer of its own"
            if found["same_texts"] is None
            else f"{found['same_texts']}/{found['texts']} texts"
        )
        ties = f", {found['ties']} of them up to a tie" if found["ties"] else ""
        detail = f"{texts}; version {found['version']}{ties}"
        outcome = f"run: {found['same_answers']}/{found['prompts']}"
        add(table, name, outcome, f"{detail}; {found['first_difference']}" if found["first_difference"] else detail)
    show(table)


def _fallback(found: Mapping[str, Any]) -> str:
    """Return how many matrices a quantised format cannot take and the cost of that, for this model and the original."""
    original = found.get("original")
    what = (
        f"falls back to {found['to']}: {found['falls_back']} of {found['of']} tensors, {found['more_bytes']:+.1%} bytes"
    )
    if original is None:
        return what
    return (
        f"{what} (original: {original['falls_back']} of {original['of']}, {original['more_bytes']:+.1%}); "
        f"bytes {found['bytes_ratio']:.3f} of the original's, parameters {found['parameters_ratio']:.3f}"
    )
