"""The options that several commands take, and how commands print: one JSON object on stdout."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.errors import FlabError
from flab.files import as_path
from flab.models.options import Options
from flab.pruning.recipe import LAYER_CRITERION_NAMES, NEURON_CRITERION_NAMES, Recipe

Remove = Annotated[float, typer.Option(help="Fraction of all parameters to remove; tied ones count once.")]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Rows (prompt + completion, optional test + entry_point; chats; text) or source code."),
]
Corpus = Annotated[list[Path] | None, typer.Option(help="More text for the token counts; repeat for several.")]
General = Annotated[float, typer.Option(help="Share of calibration tokens from Python's standard library.")]
Template = Annotated[str, typer.Option(help="auto reads chats in the model's chat template; none in plain words.")]
PromptWeight = Annotated[float, typer.Option(help="Weight of prompt tokens in the refit; answers weigh 1.")]
Vocabulary = Annotated[int | None, typer.Option(help="Pin the number of tokens to keep.")]
Layers = Annotated[int | None, typer.Option(help="Pin the number of layers to keep.")]
Width = Annotated[int | None, typer.Option(help="Pin the FFN width to keep.")]
WidthMultiple = Annotated[
    int | None,
    typer.Option(help="Keep a width that is a multiple of N; by default 32, or 64 to 256 if that costs little."),
]
DropLayers = Annotated[str | None, typer.Option(help="Drop exactly these layers, e.g. 3,5.")]
LayerCriterion = Annotated[str, typer.Option(help=f"One of: {', '.join(LAYER_CRITERION_NAMES)}.")]
NeuronCriterion = Annotated[str, typer.Option(help=f"One of: {', '.join(NEURON_CRITERION_NAMES)}.")]
RefitKind = Annotated[
    str,
    typer.Option(
        help="auto, reconstruction, descent, newton, residual, simple or none; auto is newton below 100 M parameters."
    ),
]
OutputProjection = Annotated[bool, typer.Option(help="Refit the attention's output projection too.")]
MinCount = Annotated[int, typer.Option(help="Keep tokens seen at least this often.")]
Tokens = Annotated[
    int | None,
    typer.Option(help="Calibration tokens for the statistics; by default 65,536, or 7 for each neuron of a layer."),
]
SearchTokens = Annotated[int, typer.Option(help="Calibration tokens that the search for the split sees.")]
FinalistTokens = Annotated[int, typer.Option(help="Calibration tokens that the finalists are built on.")]
MaxLength = Annotated[int, typer.Option(help="Longest calibration sequence in tokens.")]
Finalists = Annotated[int, typer.Option(help="Candidates that are built on more tokens and tried on the tests.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
_RECIPE = (
    "remove general template prompt_weight vocabulary layers width width_multiple layer_criterion neuron_criterion refit "
    "output_projection min_count tokens search_tokens finalist_tokens max_length finalists seed"
).split()
_OPTIONS = "device dtype unsandboxed trust_remote_code overwrite".split()

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto spreads the layers over all devices.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: the precision to compute in.")]
Unsandboxed = Annotated[
    bool,
    typer.Option(
        help="Where no isolation works, run tests with resource limits alone: files and network are open to them."
    ),
]
Trust = Annotated[bool, typer.Option(help="Run code that the model folder brings.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the output if it exists.")]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Make only part I of N of the answers; without it: merge and go on."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]


def emit(value: Mapping[str, Any]) -> None:
    """Print one object on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def say_shard(report: Mapping[str, Any]) -> None:
    """Where a shard's answers are, and what is left to do."""
    from flab.progress import say

    left = report["wanted"] - report["generated"]
    rest = f"{left} are missing of other shards" if left else "none is missing: repeat without --shard to go on"
    done = f"{report['generated']} of {report['wanted']} answers are there"
    say(f"shard {report['shard']} is done: {report['file']}; {done}, {rest}")


def planning_options(command: Callable[..., None], without: Sequence[str] = ()) -> Callable[..., None]:
    """Give a command every option of a recipe but those in ``without``; it receives them as ``recipe`` and ``options``."""

    def run(**given: Any) -> None:
        recipe = Recipe(
            calibration=_path(given.pop("calibration")),
            corpus=tuple(as_path(p) for p in given.pop("corpus") or ()),
            drop_layers=_numbers(given.pop("drop_layers")),
            **{name: given.pop(name) for name in _RECIPE if name not in without},
        )
        options = Options(**{name: given.pop(name) for name in _OPTIONS if name in given})
        command(recipe=recipe, options=options, **given)

    own = [p for n, p in inspect.signature(command, eval_str=True).parameters.items() if n not in ("recipe", "options")]
    extra = list(inspect.signature(_recipe_options, eval_str=True).parameters.values())
    names = {p.name for p in own} | set(without)
    run.__signature__ = inspect.Signature([*own, *(p for p in extra if p.name not in names)])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _recipe_options(
    remove: Remove = Recipe.remove,
    calibration: Calibration = None,
    corpus: Corpus = None,
    general: General = Recipe.general,
    template: Template = Recipe.template,
    prompt_weight: PromptWeight = Recipe.prompt_weight,
    vocabulary: Vocabulary = None,
    layers: Layers = None,
    width: Width = None,
    width_multiple: WidthMultiple = None,
    drop_layers: DropLayers = None,
    layer_criterion: LayerCriterion = Recipe.layer_criterion,
    neuron_criterion: NeuronCriterion = Recipe.neuron_criterion,
    refit: RefitKind = Recipe.refit,
    output_projection: OutputProjection = Recipe.output_projection,
    min_count: MinCount = Recipe.min_count,
    tokens: Tokens = Recipe.tokens,
    search_tokens: SearchTokens = Recipe.search_tokens,
    finalist_tokens: FinalistTokens = Recipe.finalist_tokens,
    max_length: MaxLength = Recipe.max_length,
    finalists: Finalists = Recipe.finalists,
    seed: Seed = Recipe.seed,
    device: Device = Options.device,
    dtype: Dtype = Options.dtype,
    unsandboxed: Unsandboxed = False,
    trust_remote_code: Trust = False,
) -> None:
    """The options of ``flab plan``, ``prune`` and ``sweep``; only the signature is read."""


def _path(value: Path | None) -> Path | None:
    return as_path(value) if value is not None else None


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FlabError(f"--drop-layers: got {text!r}, expected numbers separated by commas, e.g. 3,5.") from None
