"""The command line: each command is one library function with its options. Tables on stderr, ``--json`` on stdout.

Bad input is one line and exit code 2; ``--debug`` shows the trace. Heavy imports live inside the commands.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flab.cli.early import check_model, check_planning
from flab.cli.evaluate import COMPARE_EXAMPLE, EVAL_EXAMPLE, compare, evaluate
from flab.cli.export import EXPORT_EXAMPLE, export
from flab.cli.info import INFO_EXAMPLE, DryRun, info, show_estimate
from flab.cli.options import Device, Json, Overwrite, RefitKind, Tokens, Trust, emit, planning_options
from flab.cli.recover import DATA_EXAMPLE, RECOVER_EXAMPLE, RUN_EXAMPLE, data, recover, run
from flab.cli.report import MEASURE_EXAMPLE, REPORT_EXAMPLE, SWEEP_EXAMPLE, measure, report, sweep
from flab.errors import FlabError, plain
from flab.files import as_path, check_file, check_folder
from flab.models.options import Options
from flab.pruning.recipe import Recipe
from flab.version import __version__

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
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")]


@app.command(epilog="Example: flab demo -o table")
def demo(
    output: Output = Path("table"),
    remove: Annotated[list[float] | None, typer.Option(help="Budgets to show; repeat for several.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N problems.")] = None,
    refit: RefitKind = Recipe.refit,
    tokens: Tokens = Recipe.tokens,
    json_: Json = False,
) -> None:
    """Prune the bundled model at 22, 40 and 60 %, beside the authors' recipe, and show what was kept."""
    from flab.cli.show import show_demo
    from flab.runs.demo import run_demo

    recipes = [Recipe(remove=budget, refit=refit, tokens=tokens) for budget in remove or (0.22, 0.40, 0.60)]
    report = run_demo(as_path(output), recipes, limit)
    emit(report) if json_ else show_demo(report)


@app.command(epilog="Example: flab plan MODEL --remove 0.22 --calibration rows.jsonl -o plan.json")
@planning_options
def plan(
    model: Model,
    recipe: Any,
    options: Any,
    output: Output = Path("plan.json"),
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Decide what to remove, and write the decisions as JSON; cuts nothing."""
    check_file(as_path(output), options.overwrite, (model, *recipe.inputs))
    check_planning(model, recipe)
    if dry_run:
        from flab.runs.dry_run import estimate_plan

        show_estimate(estimate_plan(model, recipe, options, as_path(output)), json_)
        return
    from flab.cli.show import show_plan
    from flab.pruning.pipeline import plan as make

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
    from flab.progress import say
    from flab.pruning.plan import Plan

    options = Options(device=device, overwrite=overwrite, trust_remote_code=trust_remote_code)
    decided = Plan.read(as_path(plan_file))
    check_folder(as_path(output), overwrite, (model, plan_file))
    check_model(model)
    from flab.pruning.pipeline import apply as carry_out

    folder = carry_out(model, decided, output, options, refit=not no_refit)
    emit({"output": str(folder), **decided.summary()}) if json_ else say(f"saved {folder}: verify with flab check")


@app.command(epilog="Example: flab prune MODEL --remove 0.22 --calibration rows.jsonl -o SMALLER")
@planning_options
def prune(
    model: Model,
    recipe: Any,
    options: Any,
    output: Output,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Plan, apply and check in one: a smaller stock checkpoint, and what it lost."""
    check_folder(as_path(output), options.overwrite, (model, *recipe.inputs))
    check_planning(model, recipe)
    if dry_run:
        from flab.runs.dry_run import estimate_plan

        show_estimate(estimate_plan(model, recipe, options, as_path(output), prune=True), json_)
        return
    from flab.cli.show import show_check, show_plan
    from flab.pruning.pipeline import prune as run

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
    oldest_python: Annotated[
        str | None,
        typer.Option(help="Python of an environment with transformers 4.57, to load the folder with that too."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINES",
            help="Load the folder in these engines and compare tokens and greedy answers with transformers, separated by "
            "commas: llama.cpp, ctranslate2, vllm.",
        ),
    ] = None,
    engines_python: Annotated[
        str | None, typer.Option(help="Python of the environment that has the engines; by default flab's own.")
    ] = None,
    json_: Json = False,
) -> None:
    """Reload a folder in a fresh process, verify it, and say what it loads in. Exit code 1 when a check fails."""
    from flab.cli.show import show_check
    from flab.pruning.check import check as verify

    engines = tuple(name.strip() for name in run.split(",")) if run is not None else ()
    verdict = verify(folder, against, oldest_python, engines, engines_python)
    emit(verdict) if json_ else show_check(verdict)
    _exit_unless(verdict["ok"])


app.command("info", epilog=INFO_EXAMPLE)(info)
app.command("eval", epilog=EVAL_EXAMPLE)(evaluate)
app.command("compare", epilog=COMPARE_EXAMPLE)(compare)
app.command("data", epilog=DATA_EXAMPLE)(data)
app.command("recover", epilog=RECOVER_EXAMPLE)(recover)
app.command("run", epilog=RUN_EXAMPLE)(run)
app.command("export", epilog=EXPORT_EXAMPLE)(export)
app.command("measure", epilog=MEASURE_EXAMPLE)(measure)
app.command("sweep", epilog=SWEEP_EXAMPLE)(sweep)
app.command("report", epilog=REPORT_EXAMPLE)(report)


def _exit_unless(ok: bool) -> None:
    if not ok:
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    """Make code LLMs smaller under one parameter budget, and prove what was kept."""


TYPER_INTERRUPTED = 130  # what typer returns for Ctrl-C when it is not the one to exit
INTERRUPTED = "interrupted: no unfinished output is left"
_signals: list[int] = []  # those received


def _interrupt(number: int, _: Any) -> NoReturn:
    _signals.append(number)
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: one line and exit code 2 for whatever is wrong with the input."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        code = app(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        code = _fail(_line_of(error), error)
    if code == TYPER_INTERRUPTED:
        code = _fail(INTERRUPTED, KeyboardInterrupt())
    sys.exit(code if isinstance(code, int) else 0)


def _line_of(error: BaseException) -> str:
    """What to say of an error; one that is nobody's mistake but ours is raised again."""
    if isinstance(error, FlabError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort) or _signals:  # a library may make another error of a signal
        return INTERRUPTED
    if isinstance(error, typer.exceptions.TyperException):
        return error.format_message() if hasattr(error, "format_message") else str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}"
    if isinstance(error, MemoryError):
        return (
            "out of memory: lower --tokens (plan, prune, sweep), --batch-size (eval, data), --micro-batch (recover) or "
            "--max-batch (measure), or use a machine with more"
        )
    raise error


def _fail(message: str, error: BaseException) -> int:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    sys.stderr.write(f"flab: {plain(message)}\n")
    return 2
