"""``flab eval`` and ``flab compare``: measure a model on tasks, compare two runs. ``cli`` gives them their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model, check_tasks
from flab.cli.info import DryRun, show_estimate
from flab.cli.options import Device, Dtype, Json, Overwrite, ShardOf, Trust, Unsandboxed, emit, say_shard
from flab.errors import FlabError, OptionError
from flab.evaluation.tasks import parse_task_argument
from flab.files import as_path, check_result
from flab.models.options import Options

EVAL_EXAMPLE = "Example: flab eval MODEL --task HumanEval.jsonl --perturb all -o RUN"
COMPARE_EXAMPLE = "Example: flab compare RUN_OF_MODEL RUN_OF_SMALLER"

Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "--problems",
        metavar="[KIND:]FILE",
        help="File with rows or hub id; KIND is code, cot or output; repeat for several.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder of the run, resumed if there; or a file, NAME.json.")
]
Preset = Annotated[str, typer.Option(help="How to ask: completion, chat or paper.")]
Samples = Annotated[int, typer.Option(help="Samples of each problem.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this much of the mass.")]
Seed = Annotated[int, typer.Option(help="Seed of samples and perturbations.")]
Perturb = Annotated[
    list[str] | None, typer.Option(help="Measure perturbed problems too: a name, or all; repeat for several.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first N problems of each task.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer.")]
BatchSize = Annotated[int, typer.Option(help="Prompts generated together.")]
Backend = Annotated[str, typer.Option(help="transformers or vllm.")]
Against = Annotated[
    list[Path] | None, typer.Option(help="Data the model has seen: look for the problems in it; repeatable.")
]
Export = Annotated[bool, typer.Option("--export", help="Write files for EvalPlus and lm-evaluation-harness too.")]
Gold = Annotated[
    bool | None, typer.Option("--gold/--no-gold", help="Run only the references, without a model; or never run them.")
]


def evaluate(
    model: Annotated[str | None, typer.Argument(help="Folder of a Hugging Face model, or a hub id.")] = None,
    task: Task = None,
    output: Out = None,
    preset: Preset = "completion",
    samples: Samples = 1,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    perturb: Perturb = None,
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: BatchSize = 64,
    backend: Backend = "transformers",
    against_data: Against = None,
    export: Export = False,
    gold: Gold = None,
    shard: ShardOf = None,
    dry_run: DryRun = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    unsandboxed: Unsandboxed = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Ask a model every problem, score the answers (code by its tests, in the sandbox), and check the references."""
    options = Options(
        device=device, dtype=dtype, overwrite=overwrite, unsandboxed=unsandboxed, trust_remote_code=trust_remote_code
    )
    given: dict[str, Any] = {"limit": limit, "perturbations": perturb or [], "options": options}
    if gold:
        _gold(model, task or [], output, given | {"seed": seed}, json_)
        return
    if model is None:
        raise OptionError("no MODEL: give a folder or a hub id, or --gold to run only the references of the tasks.")
    read = [model, *(parse_task_argument(one)[1] for one in task or ()), *(against_data or ())]
    if output is not None and output.suffix == ".json":
        check_result(as_path(output), overwrite, read)
    check_tasks(task or (), limit)
    check_model(model)
    from flab.evaluation.runs import Settings

    settings = Settings(preset, samples, temperature, top_p, seed, max_new_tokens, batch_size)
    if dry_run:
        _estimate(model, task or [], output, settings, given | {"gold": gold is not False}, json_)
        return
    given |= {"gold": gold is not False, "against_data": against_data or [], "backend": backend, "export": export}
    _show_run(_run(model, task or [], output, settings, given, shard), output, json_, shard)


def _run(
    model: str, tasks: list[str], output: Path | None, settings: Any, given: dict[str, Any], shard: str | None
) -> dict[str, Any]:
    """Measure the model, or answer from the folder if it holds a finished run of just this, which takes no torch."""
    folder = as_path(output) if output is not None and output.suffix != ".json" else None
    if folder is not None and shard is None:
        from flab.evaluation.finished import FINISHED, asked, finished_run
        from flab.progress import say

        known = finished_run(folder, asked(model, tasks, settings, **given))
        if known is not None:
            say(FINISHED.format(folder))
            return known
    from flab.evaluation.evaluate import evaluate as run

    try:
        return run(model, tasks, output, settings, **given, shard=shard)
    except KeyboardInterrupt:
        if folder is None:
            raise
        raise FlabError(f"interrupted: what was generated is in {output}; the same command goes on there.") from None


def _estimate(
    model: str, tasks: list[str], output: Path | None, settings: Any, given: dict[str, Any], json_: bool
) -> None:
    from flab.runs.dry_run import estimate_eval

    show_estimate(estimate_eval(model, tasks, settings, out=output, **given), json_)


def _show_run(report: Mapping[str, Any], output: Path | None, json_: bool, shard: str | None) -> None:
    from flab.cli.show_evaluate import show_run

    if shard is not None:
        emit(report) if json_ else say_shard(report)
    elif json_:
        emit(without_rows(report))
    else:
        show_run(report, str(output) if output is not None else None)


def without_rows(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report less its rows; with one task its figures stand at the top too."""
    tasks = [{name: value for name, value in task.items() if name != "rows"} for task in report["tasks"]]
    top = tasks[0]["summary"] if len(tasks) == 1 else {}
    return {**top, **report, "tasks": tasks}


def _gold(model: str | None, tasks: list[str], output: Path | None, given: dict[str, Any], json_: bool) -> None:
    """References only; a model that was named is not opened."""
    from flab.cli.show_evaluate import show_gold
    from flab.evaluation.evaluate import evaluate_references
    from flab.files import write_json
    from flab.progress import say

    if output is not None and output.suffix != ".json":
        raise OptionError(f"-o {output}: --gold makes no run; give a file that ends in .json, or leave it out.")
    if output is not None:
        check_result(as_path(output), given["options"].overwrite, [parse_task_argument(one)[1] for one in tasks])
    if model is not None:
        say(f"--gold runs only the references: {model} is not opened")
    report = evaluate_references(tasks, **given)
    if output is not None:
        write_json(as_path(output), report)
    emit(report) if json_ else show_gold(report)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The first run: a folder, or its results.json.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The run to compare with it.")],
    margin: Annotated[float, typer.Option(help="Drop of pass@1, in points, up to which B counts as good as A.")] = 2.0,
    json_: Json = False,
) -> None:
    """Pair two runs problem by problem: what the second kept of the first, and whether it is as good within a margin."""
    from flab.cli.show_evaluate import show_comparison
    from flab.evaluation.compare import compare_runs

    report = compare_runs(as_path(run_a), as_path(run_b), margin)
    emit(report) if json_ else show_comparison(report)
