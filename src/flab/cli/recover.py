"""``flab data``, ``flab recover`` and ``flab run``: training data, training, and the whole way from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.info import DryRun, show_estimate
from flab.cli.options import Device, Dtype, Json, Overwrite, ShardOf, Template, Trust, Unsandboxed, emit, say_shard
from flab.errors import FlabError, OptionError
from flab.files import as_path
from flab.models.options import Options
from flab.recovery.settings import METHODS, TARGETS, Training
from flab.recovery.strategies import STRATEGIES, UNTESTED, Making

DATA_EXAMPLE = "Example: flab data MODEL --instructions rows.jsonl --against HumanEval.jsonl -o data.jsonl"
RECOVER_EXAMPLE = "Example: flab recover SMALLER --teacher MODEL --data data.jsonl --minutes 30 -o RECOVERED"
RUN_EXAMPLE = "Example: flab run recipes/quickstart.yml -o RUN"

Instructions = Annotated[
    list[Path] | None,
    typer.Option(
        help="Rows: prompt + completion (test, entry_point), instruction + answer, messages, text; repeatable."
    ),
]
Against = Annotated[list[str] | None, typer.Option(help="Evaluation files: instructions that overlap go; repeatable.")]
Text = Annotated[
    list[Path] | None, typer.Option(help="Plain text or source code to go on pre-training with; repeatable.")
]
TextShare = Annotated[float, typer.Option(help="Share of plain text in the characters, where any is given.")]
StrategyName = Annotated[str, typer.Option(help=f"One of: {', '.join(STRATEGIES)}.")]
Untested = Annotated[str, typer.Option(help=f"For rows that nothing can verify, the target: {', '.join(UNTESTED)}.")]
Tries = Annotated[int, typer.Option(help="Answers drawn where the greedy one is wrong.")]
Temperature = Annotated[float, typer.Option(help="Of the answers drawn where the greedy one is wrong.")]
TopP = Annotated[float, typer.Option(help="Of the answers drawn where the greedy one is wrong.")]
Mix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=SHARE",
        help="Wanted shares of kinds, e.g. code=2; kinds not named are dropped (own texts are own); repeat for several.",
    ),
]
Evaluations = Annotated[int, typer.Option(help="How often the held-out rows are measured, and a checkpoint saved.")]
Patience = Annotated[int, typer.Option(help="Stop after so many measurements in a row without a better one.")]
OwnTexts = Annotated[
    int,
    typer.Option(
        help="Texts that the model writes on its own, from the first words of instructions (chats: questions too)."
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer; what is cut off is no answer.")]
BatchSize = Annotated[int, typer.Option(help="Prompts generated together.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows of each file.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Out = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")]


def data(
    model: Annotated[str, typer.Argument(help="The original model: folder or hub id.")],
    output: Out,
    instructions: Instructions = None,
    against: Against = None,
    text: Text = None,
    strategy: StrategyName = Making.strategy,
    untested: Untested = Making.untested,
    tries: Tries = Making.tries,
    temperature: Temperature = Making.temperature,
    top_p: TopP = Making.top_p,
    mix: Mix = None,
    text_share: TextShare = Making.text_share,
    own_texts: OwnTexts = Making.own_texts,
    max_new_tokens: MaxNewTokens = Making.max_new_tokens,
    batch_size: BatchSize = Making.batch_size,
    seed: Seed = Making.seed,
    limit: Limit = None,
    shard: ShardOf = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    unsandboxed: Unsandboxed = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Make training data in the original model's own verified words; resumes where it was stopped."""
    making = Making(
        strategy=strategy,
        untested=untested,
        tries=tries,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        mix=parse_mix(mix or []),
        text_share=text_share,
        own_texts=own_texts,
        seed=seed,
    )
    options = Options(
        device=device, dtype=dtype, overwrite=overwrite, unsandboxed=unsandboxed, trust_remote_code=trust_remote_code
    )
    if not instructions:
        raise OptionError("--instructions: got none; give a JSONL file of what to ask.")
    from flab.cli.show_recover import show_data
    from flab.recovery.data import make_data

    paths = [as_path(path) for path in instructions]
    texts = [as_path(path) for path in text or ()]
    try:
        report = make_data(model, paths, as_path(output), making, options, against or (), texts, limit, shard)
    except KeyboardInterrupt:
        raise FlabError("interrupted: the answers so far are kept; the same command goes on.") from None
    if json_:
        emit(report)
    elif shard is not None:
        say_shard(report)
    else:
        show_data(report)


def parse_mix(parts: list[str]) -> tuple[tuple[str, float], ...]:
    """Read ``KIND=SHARE``; OptionError for anything else."""
    found = []
    for part in parts:
        kind, _, share = part.partition("=")
        try:
            found.append((kind.strip(), float(share)))
        except ValueError:
            raise OptionError(f"--mix: got {part!r}, allowed KIND=SHARE, e.g. code=2.") from None
    return tuple(found)


def recover(
    folder: Annotated[str, typer.Argument(metavar="SMALLER", help="A folder that flab prune or apply wrote.")],
    output: Out,
    teacher: Annotated[str, typer.Option(help="The original model that SMALLER was cut from.")],
    data_file: Annotated[Path, typer.Option("--data", help="Rows from flab data, or any calibration file.")],
    method: Annotated[
        str, typer.Option(help=f"One of: {', '.join(METHODS)}; auto is lora from 1 B parameters.")
    ] = "auto",
    alpha: Annotated[
        float, typer.Option(help="(1 - alpha) cross entropy + alpha KL(teacher, student).")
    ] = Training.alpha,
    temperature: Annotated[float, typer.Option(help="Softens both distributions of the KL.")] = Training.temperature,
    kl_on: Annotated[
        str, typer.Option(help=f"Tokens that the KL is taken on: {' or '.join(TARGETS)}.")
    ] = Training.kl_on,
    template: Template = Training.template,
    steps: Annotated[int | None, typer.Option(help="Budget: optimizer steps.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget: tokens read.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget: minutes of training and measuring.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget: times through the data; 3 where none is given.")] = None,
    length: Annotated[
        int, typer.Option(help="Tokens of a row; shorter examples are packed into it.")
    ] = Training.length,
    batch: Annotated[int, typer.Option(help="Rows of a step, over all devices.")] = Training.batch,
    micro_batch: Annotated[int, typer.Option(help="Rows at once on one device.")] = Training.micro_batch,
    packing: Annotated[bool, typer.Option(help="Several examples in a row.")] = Training.packing,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 1e-3 full, 2e-4 LoRA, 2e-5 full from 1 B parameters.")
    ] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps with a rising rate.")] = Training.warmup,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = Training.weight_decay,
    held_out: Annotated[float, typer.Option(help="Share of the prompts that only measure.")] = Training.held_out,
    evaluations: Evaluations = Training.evaluations,
    patience: Patience = Training.patience,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Recompute activations: less memory, slower.")] = False,
    lora_rank: Annotated[int, typer.Option(help="Rank of the LoRA updates.")] = Training.lora_rank,
    seed: Seed = Training.seed,
    dry_run: DryRun = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Distil the original into the smaller model, merge, save a stock folder, verify it; resumes where it was stopped."""
    given = locals()
    training = Training(**{name: given[name] for name in Training.__dataclass_fields__})
    options = Options(device=device, dtype=dtype, overwrite=overwrite, trust_remote_code=trust_remote_code)
    if dry_run:
        return _estimate(folder, teacher, data_file, training, options, output, json_)
    from flab.recovery.train import recover as run

    try:
        report = run(folder, teacher, as_path(data_file), as_path(output), training, options)
    except KeyboardInterrupt:
        raise FlabError(f"interrupted: checkpoints are in {output}.training; the same command goes on.") from None
    if "output" in report:  # this is the first process
        _show_recovery(report, json_)


def _estimate(
    folder: str, teacher: str, data: Path, training: Training, options: Options, output: Path, json_: bool
) -> None:
    from flab.runs.dry_run import estimate_recover

    show_estimate(estimate_recover(folder, teacher, as_path(data), training, options, as_path(output)), json_)


def _show_recovery(report: Mapping[str, Any], json_: bool) -> None:
    """Print what the training reached; exit code 1 if the output's check failed."""
    from flab.cli.show_recover import show_recovery

    emit(report) if json_ else show_recovery(report)
    if not report["check"]["ok"]:
        raise typer.Exit(1)


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, see recipes/.")],
    output: Out,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Prune, make data, recover, evaluate, compare, measure and report, as a recipe says; skips what is done."""
    from flab.cli.show_recover import show_summary
    from flab.runs.recipe_file import read_recipe
    from flab.runs.stages import run_recipe

    wanted = read_recipe(as_path(recipe))
    if dry_run:
        from flab.runs.dry_run import estimate_run

        show_estimate(estimate_run(wanted, as_path(output)), json_)
        return
    try:
        summary = run_recipe(wanted, as_path(output))
    except KeyboardInterrupt:
        raise FlabError(f"interrupted: what is done stays in {output}; the same command goes on.") from None
    emit(summary) if json_ else show_summary(summary)
