"""``flab data``, ``recover``, ``run`` and ``demo``: training data, training, whole runs, and what they print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flab import assets
from flab.cli.early import check_model, check_recovery, check_run
from flab.cli.info import DryRun, show_estimate
from flab.cli.options import KEEPS, Json, Output, ShardOf, emit, show_shard, takes
from flab.cli.prune import exit_unless, show_check
from flab.cli.report import show_gains
from flab.errors import FlabError, OptionError
from flab.files import as_path
from flab.models.options import Options
from flab.progress import add, reply, show, table_of
from flab.recovery.settings import Training
from flab.recovery.strategies import Making

DATA_EXAMPLE = "Example: flab data MODEL --instructions rows.jsonl --against HumanEval.jsonl -o data.jsonl"
RECOVER_EXAMPLE = "Example: flab recover SMALLER --teacher MODEL --data data.jsonl --minutes 30 -o RECOVERED"
DEMO_EXAMPLE = "Example: flab demo -o RUN"
RUN_EXAMPLE = "Example: flab run recipes/quickstart.yml -o RUN"


@takes(making=Making, options=Options, without=("in_memory",))
def data(
    model: Annotated[str, typer.Argument(help="Folder of the original model, or its hub id.")],
    output: Output,
    making: Any,
    options: Any,
    instructions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Rows to answer: prompt and completion, instruction and answer, chats, or text. Repeatable.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Evaluation files. Instructions that overlap with them are left out. Repeatable."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Plain text or source code for continued pre-training. Repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use only the first N rows of each file.")] = None,
    shard: ShardOf = None,
    json_: Json = False,
) -> None:
    """Make training data in the original model's words.

    Answers are verified by tests if the rows have any. If the command is
    stopped, run it again to resume.
    """
    if not instructions:
        raise OptionError("--instructions: got none; give a file of instructions.")
    check_model(model)
    from flab.recovery.data import make_data

    paths = [as_path(path) for path in instructions]
    texts = [as_path(path) for path in text or ()]
    try:
        report = make_data(model, paths, as_path(output), making, options, against or (), texts, limit, shard)
    except KeyboardInterrupt:
        raise FlabError("interrupted: the answers so far are kept; the same command resumes.") from None
    if json_:
        emit(report)
    elif shard is not None:
        show_shard(report)
    else:
        show_data(report)


@takes(training=Training, options=Options, without=("unsandboxed", "in_memory"), helps=KEEPS)
def recover(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="SMALLER", help="A folder that flab prune or apply wrote. With --dry-run also its plan."
        ),
    ],
    output: Output,
    teacher: Annotated[str, typer.Option(metavar="PATH", help="The original model that SMALLER was cut from.")],
    data_file: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="Rows from flab data, or any calibration file.")
    ],
    training: Any,
    options: Any,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Distil the original into the smaller model.

    The output is a standard model folder, merged and verified. If no
    checkpoint beats the untrained model, nothing is written. If the command is
    stopped, run it again to resume.
    """
    check_recovery(folder, teacher, as_path(data_file), as_path(output), options.overwrite, plan=dry_run)
    if dry_run:
        from flab.runs.dry_run import estimate_recover

        show_estimate(estimate_recover(folder, teacher, as_path(data_file), training, options, as_path(output)), json_)
        return
    from flab.recovery.train import recover as run

    try:
        report = run(folder, teacher, as_path(data_file), as_path(output), training, options)
    except KeyboardInterrupt:
        raise FlabError(f"interrupted: checkpoints are in {output}.training; the same command resumes.") from None
    # Under torchrun every process gets here, and only the first has written anything.
    if "output" not in report:  # another process than the first
        return
    emit(report) if json_ else show_recovery(report)
    exit_unless(report["check"]["ok"])


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as those in recipes/.")],
    output: Output,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Carry out a recipe from pruning to report.

    Stages whose inputs have not changed are skipped, so a stopped run resumes.
    """
    wanted = check_run(as_path(recipe), as_path(output))
    if dry_run:
        from flab.runs.dry_run import estimate_run

        show_estimate(estimate_run(wanted, as_path(output)), json_)
        return
    from flab.runs.stages import run_recipe

    try:
        summary = run_recipe(wanted, as_path(output))
    except KeyboardInterrupt:
        raise FlabError(f"interrupted: finished stages are in {output}; the same command resumes.") from None
    emit(summary) if json_ else show_summary(summary)


def demo(output: Output = Path("demo"), dry_run: DryRun = False, json_: Json = False) -> None:
    """Run the whole quick start on the bundled model.

    Prunes, recovers, evaluates and measures the model, and writes
    report.html. This takes minutes; a stopped run resumes.
    """
    run(assets.quickstart_path(), output, dry_run, json_)


def show_data(report: Mapping[str, Any]) -> None:
    """Print what each step left, and the sources of the rows."""
    table = table_of("Steps", ["step", "left", "found"])
    for step in report["steps"]:
        found = ", ".join(f"{name} {n}" for name, n in step.items() if name not in ("step", "left"))
        add(table, step["step"], step["left"], found or "-")
    show(table)
    for name in ("kinds", "sources"):
        reply(f"{name}: " + ", ".join(f"{kind} {n}" for kind, n in report[name].items()))
    reply(f"{report['rows']} rows in {report['output']} (strategy {report['making']['strategy']})")


def show_recovery(report: Mapping[str, Any]) -> None:
    """Print the held-out terms before and after, the cost, and the verdict of the check."""
    before = report["held_out"]["before"]
    after = report["held_out"]["after"]
    table = table_of("Held-out rows, nats per token", ["", "before", "after", "change"])
    for name in ("loss", "kl", "cross_entropy"):
        if name in after:
            change = f"{after[name] / before[name] - 1:+.1%}" if before[name] else "-"
            add(table, name.replace("_", " "), f"{before[name]:.4f}", f"{after[name]:.4f}", change)
    show(table)
    early = ", stopped early" if report["stopped_early"] else ""
    steps = f"{report['steps']} steps{early}, the best was {report['chosen_step']}"
    cost = f"{report['tokens']:,} tokens in {report['seconds']:.0f} s on {report['devices']} {report['device']}"
    reply(f"{report['method']} training, learning rate {report['learning_rate']:g}: {steps}; {cost}")
    memory = report["peak_memory"]
    reply(
        f"peak memory: {memory['measured_bytes'] / 2**30:.2f} GiB ({memory['method']}), {memory['predicted_bytes'] / 2**30:.2f} "
        "GiB by formula"
    )
    show_check(report["check"])
    reply(f"saved {report['output']}")


def show_summary(summary: Mapping[str, Any]) -> None:
    """Print one row for each model: its size, and its passes of each task, paired with the original."""
    names = list(summary["models"][0]["tasks"])
    table = table_of("Summary of the run", ["model", "parameters", "MB", *names])
    original = summary["models"][0]
    for row in summary["models"]:
        share = 1 - row["parameters"] / original["parameters"]
        size = f"{row['parameters']:,}" + (f" (-{share:.1%})" if share else "")
        add(table, row["name"], size, f"{row['bytes'] / 1e6:.2f}", *(_outcome(row["tasks"][name]) for name in names))
    show(table)
    reply(
        "each cell: passed of all (95 % interval); the fraction of the original's passes that is kept; the problems that only "
        "the original / only this model passes."
    )
    seconds = {name: value for name, value in summary["seconds"].items() if name != "now"}
    reply("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    show_gains(summary["stages"].get("measure", {}).get("gains", {}))
    reply(
        f"this run took {summary['seconds']['now']:.0f} s; models, data, answers, comparisons and report.html are in "
        f"{summary['output']}"
    )


def _outcome(task: Mapping[str, Any]) -> str:
    low, high = task["interval_95"]
    passed = f"{task['passed']}/{task['total']} ({low:.2f}-{high:.2f})"
    if "only_a" not in task:
        return passed
    kept = task["retention"]
    ratio = "-" if kept is None else f"{kept['ratio']:.3f}"
    return f"{passed}\nkept {ratio}, {task['only_a']}/{task['only_b']}"
