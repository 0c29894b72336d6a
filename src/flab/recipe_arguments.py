"""The options of a recipe, as several commands take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.arguments import Device, Dtype, Trust, Unsandboxed
from flab.errors import FlabError
from flab.recipe import LAYER_CRITERION_NAMES, NEURON_CRITERION_NAMES, Options, Recipe, as_path

Remove = Annotated[float, typer.Option(help="Fraction of all parameters to remove; tied ones count once.")]
Calibration = Annotated[
    Path | None, typer.Option(help="JSONL (prompt + completion, optional test + entry_point; or text) or source code.")
]
Corpus = Annotated[list[Path] | None, typer.Option(help="More text for the token counts; repeat for several.")]
General = Annotated[float, typer.Option(help="Share of calibration tokens from Python's standard library.")]
PromptWeight = Annotated[float, typer.Option(help="Weight of prompt tokens in the refit; answers weigh 1.")]
Vocabulary = Annotated[int | None, typer.Option(help="Pin the number of tokens to keep.")]
Layers = Annotated[int | None, typer.Option(help="Pin the number of layers to keep.")]
Width = Annotated[int | None, typer.Option(help="Pin the FFN width to keep.")]
DropLayers = Annotated[str | None, typer.Option(help="Drop exactly these layers, e.g. 3,5.")]
LayerCriterion = Annotated[str, typer.Option(help=f"One of: {', '.join(LAYER_CRITERION_NAMES)}.")]
NeuronCriterion = Annotated[str, typer.Option(help=f"One of: {', '.join(NEURON_CRITERION_NAMES)}.")]
RefitKind = Annotated[
    str,
    typer.Option(
        help="auto (descent from 100 M parameters on, else newton), reconstruction, descent, newton, residual, simple or none."
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
    prompt_weight: PromptWeight = Recipe.prompt_weight,
    vocabulary: Vocabulary = None,
    layers: Layers = None,
    width: Width = None,
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


_RECIPE = (
    "remove general prompt_weight vocabulary layers width layer_criterion neuron_criterion refit output_projection min_count "
    "tokens search_tokens finalist_tokens max_length finalists seed"
).split()
_OPTIONS = "device dtype unsandboxed trust_remote_code overwrite".split()


def _path(value: Path | None) -> Path | None:
    return as_path(value) if value is not None else None


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FlabError(f"--drop-layers: got {text!r}, expected numbers separated by commas, e.g. 3,5.") from None
