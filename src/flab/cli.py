"""The command line: each command is one library function with its options. Tables on stderr, ``--json`` on stdout.

Bad input is one line and exit code 2; ``--debug`` shows the trace. Heavy imports live inside the commands.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flab import __version__
from flab.arguments import Device, Dtype, Json, Overwrite, Trust, Unsandboxed, check_file, emit
from flab.cli_eval import COMPARE_EXAMPLE, EVAL_EXAMPLE, compare, evaluate
from flab.cli_recover import DATA_EXAMPLE, RECOVER_EXAMPLE, RUN_EXAMPLE, data, recover, run
from flab.errors import FlabError
from flab.recipe import LAYER_CRITERION_NAMES, NEURON_CRITERION_NAMES, Options, Recipe, as_path

app = typer.Typer(
    name="flab",
    help="Make code LLMs smaller under one parameter budget, and prove what was kept.",
    epilog="Start with: flab demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or a hub id.")]
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
RefitKind = Annotated[str, typer.Option(help="newton, residual, simple or none.")]
OutputProjection = Annotated[bool, typer.Option(help="Refit the attention's output projection too.")]
MinCount = Annotated[int, typer.Option(help="Keep tokens seen at least this often.")]
Tokens = Annotated[int, typer.Option(help="Calibration tokens for the statistics.")]
SearchTokens = Annotated[int, typer.Option(help="Calibration tokens that the search for the split sees.")]
FinalistTokens = Annotated[int, typer.Option(help="Calibration tokens that the finalists are built on.")]
MaxLength = Annotated[int, typer.Option(help="Longest calibration sequence in tokens.")]
Finalists = Annotated[int, typer.Option(help="Candidates that are built on more tokens and tried on the tests.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")]


def planning_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of a recipe; it receives them as ``recipe`` and ``options``."""
    import inspect

    def run(**given: Any) -> None:
        recipe = Recipe(
            calibration=_path(given.pop("calibration")),
            corpus=tuple(as_path(p) for p in given.pop("corpus") or ()),
            drop_layers=_numbers(given.pop("drop_layers")),
            **{name: given.pop(name) for name in _RECIPE},
        )
        options = Options(**{name: given.pop(name) for name in _OPTIONS if name in given})
        command(recipe=recipe, options=options, **given)

    own = [p for n, p in inspect.signature(command, eval_str=True).parameters.items() if n not in ("recipe", "options")]
    extra = list(inspect.signature(_recipe_options, eval_str=True).parameters.values())
    names = {p.name for p in own}
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
    """The options of ``flab plan`` and ``flab prune``; only the signature is read."""


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


@app.command(epilog="Example: flab demo -o demo/")
def demo(
    output: Output = Path("demo"),
    remove: Annotated[list[float] | None, typer.Option(help="Budgets to show; repeat for several.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N problems.")] = None,
    json_: Json = False,
) -> None:
    """Prune the bundled model at 22, 40 and 60 %, beside the authors' recipe, and show what was kept."""
    from flab.demo import run_demo
    from flab.show import show_demo

    report = run_demo(as_path(output), tuple(remove or (0.22, 0.40, 0.60)), limit)
    emit(report) if json_ else show_demo(report)


@app.command(epilog="Example: flab plan MODEL --remove 0.22 --calibration rows.jsonl -o plan.json")
@planning_options
def plan(model: Model, recipe: Any, options: Any, output: Output = Path("plan.json"), json_: Json = False) -> None:
    """Decide what to remove, and write the decisions as JSON; cuts nothing."""
    from flab.pipeline import plan as make
    from flab.show import announce, show_plan

    check_file(output)
    announce(recipe)
    decided = make(model, recipe, options)
    decided.write(as_path(output))
    emit(decided.summary()) if json_ else show_plan(decided.summary(), f"plan written to {output}")


@app.command(epilog="Example: flab apply MODEL plan.json -o SMALLER")
def apply(
    model: Model,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan written by flab plan.")],
    output: Output,
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Cut alone; needs no calibration data.")] = False,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Carry out a plan: cut, refit from the data that the plan names, save a stock folder."""
    from flab.pipeline import apply as carry_out
    from flab.plans import Plan
    from flab.progress import say

    options = Options(device=device, overwrite=overwrite, trust_remote_code=trust_remote_code)
    decided = Plan.read(as_path(plan_file))
    folder = carry_out(model, decided, output, options, refit=not no_refit)
    emit({"output": str(folder), **decided.summary()}) if json_ else say(f"saved {folder}: verify with flab check")


@app.command(epilog="Example: flab prune MODEL --remove 0.22 --calibration rows.jsonl -o SMALLER")
@planning_options
def prune(
    model: Model, recipe: Any, options: Any, output: Output, overwrite: Overwrite = False, json_: Json = False
) -> None:
    """Plan, apply and check in one: a smaller stock checkpoint, and what it lost."""
    from flab.pipeline import prune as run
    from flab.show import announce, show_check, show_plan

    announce(recipe)
    report = run(model, output, recipe, options)
    if json_:
        emit(report)
    else:
        show_plan(report, f"saved {report['output']} in {report['seconds']['total']:.0f} s")
        show_check(report["check"])
    _exit_unless(report["check"]["ok"])


@app.command(epilog="Example: flab check SMALLER --against MODEL")
def check(
    folder: Annotated[str, typer.Argument(help="The folder to verify.")],
    against: Annotated[str | None, typer.Option(help="The original model, to compare bit for bit.")] = None,
    json_: Json = False,
) -> None:
    """Reload a folder in a fresh process, verify it, and say what it loads in. Exit code 1 when a check fails."""
    from flab.checking import check as verify
    from flab.show import show_check

    verdict = verify(folder, against)
    emit(verdict) if json_ else show_check(verdict)
    _exit_unless(verdict["ok"])


app.command("eval", epilog=EVAL_EXAMPLE)(evaluate)
app.command("compare", epilog=COMPARE_EXAMPLE)(compare)
app.command("data", epilog=DATA_EXAMPLE)(data)
app.command("recover", epilog=RECOVER_EXAMPLE)(recover)
app.command("run", epilog=RUN_EXAMPLE)(run)


def _exit_unless(ok: bool) -> None:
    if not ok:
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    """Make code LLMs smaller under one parameter budget, and prove what was kept."""


TYPER_INTERRUPTED = 130  # what typer returns for Ctrl-C when it is not the one to exit


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: one line and exit code 2 for whatever is wrong with the input."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except FlabError as error:
        code = _fail(str(error), error)
    except typer.exceptions.TyperException as error:
        code = _fail(error.format_message() if hasattr(error, "format_message") else str(error), error)
    except (KeyboardInterrupt, typer.Abort) as error:
        code = _fail("interrupted: no unfinished output is left", error)
    except OSError as error:
        code = _fail(f"{error.strerror or error}: {error.filename or ''}", error)
    except MemoryError as error:
        code = _fail("out of memory: use a smaller --tokens, or a machine with more", error)
    if code == TYPER_INTERRUPTED:
        code = _fail("interrupted: no unfinished output is left", KeyboardInterrupt())
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, error: BaseException) -> int:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    sys.stderr.write("flab: " + " ".join(message.split()) + "\n")
    return 2
