"""The command line: each command is one library function with its options. Its result goes to stdout.

Bad input is one line and exit code 2; ``--debug`` shows the traceback. Heavy imports live inside the commands.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from functools import cache
from typing import Annotated, Any, NoReturn

import typer

from flab import progress
from flab.cli.evaluate import COMPARE_EXAMPLE, EVAL_EXAMPLE, compare, evaluate
from flab.cli.info import INFO_EXAMPLE, info
from flab.cli.models import EXPORT_EXAMPLE, FAMILIES_EXAMPLE, TEXT_EXAMPLE, export, families, text
from flab.cli.options import wrong_number
from flab.cli.prune import APPLY_EXAMPLE, CHECK_EXAMPLE, PLAN_EXAMPLE, PRUNE_EXAMPLE, apply, check, plan, prune
from flab.cli.recover import DATA_EXAMPLE, DEMO_EXAMPLE, RECOVER_EXAMPLE, RUN_EXAMPLE, data, demo, recover, run
from flab.cli.report import MEASURE_EXAMPLE, REPORT_EXAMPLE, SWEEP_EXAMPLE, measure, report, sweep
from flab.errors import FlabError, OptionError, plain
from flab.version import __version__

app = typer.Typer(
    name="flab",
    help="Prune a code LLM to a parameter budget, and prove what it kept.",
    epilog="Start with: flab demo",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo", epilog=DEMO_EXAMPLE)(demo)
app.command("info", epilog=INFO_EXAMPLE)(info)
app.command("families", epilog=FAMILIES_EXAMPLE)(families)
app.command("text", epilog=TEXT_EXAMPLE)(text)
app.command("plan", epilog=PLAN_EXAMPLE)(plan)
app.command("apply", epilog=APPLY_EXAMPLE)(apply)
app.command("prune", epilog=PRUNE_EXAMPLE)(prune)
app.command("check", epilog=CHECK_EXAMPLE)(check)
app.command("eval", epilog=EVAL_EXAMPLE)(evaluate)
app.command("compare", epilog=COMPARE_EXAMPLE)(compare)
app.command("data", epilog=DATA_EXAMPLE)(data)
app.command("recover", epilog=RECOVER_EXAMPLE)(recover)
app.command("run", epilog=RUN_EXAMPLE)(run)
app.command("export", epilog=EXPORT_EXAMPLE)(export)
app.command("measure", epilog=MEASURE_EXAMPLE)(measure)
app.command("sweep", epilog=SWEEP_EXAMPLE)(sweep)
app.command("report", epilog=REPORT_EXAMPLE)(report)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flab {__version__}")
        raise typer.Exit


def _threads(value: int | None) -> None:
    """Set the number of threads before torch is loaded, here and in the processes that are started."""
    if value is None:
        return
    if not 1 <= value <= MOST_THREADS:
        raise OptionError(f"--threads: got {value}, allowed 1 to {MOST_THREADS}.")
    os.environ.update(OMP_NUM_THREADS=str(value), MKL_NUM_THREADS=str(value))


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", metavar=" ", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", metavar=" ", help="Show the traceback if there is an error.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            callback=_threads,
            is_eager=True,
            help="Number of threads to compute with. Default: one per core.",
        ),
    ] = None,
) -> None:
    """Prune a code LLM to a parameter budget, and prove what it kept."""


FIELD = re.compile(r"`([a-z][a-z0-9_]*)`")  # as messages of the library quote one
MOST_THREADS = 1024
# How long OpenMP's threads spin (libgomp counts in rounds, Intel's runtime in milliseconds), and large tensors in pages of
# 2 MB where the system has them.
SETTINGS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1", "THP_MEM_ALLOC_ENABLE": "1"}
TYPER_INTERRUPTED = 130  # what typer returns for Ctrl-C when it is not the one to exit
INTERRUPTED = "interrupted: no unfinished output is left"
_signals: list[int] = []  # those received


def _interrupt(number: int, _: Any) -> NoReturn:
    _signals.append(number)
    raise KeyboardInterrupt


def settle_environment() -> None:
    """Set what torch and OpenMP read when they are imported, unless the user has set it.

    By default OpenMP's threads spin for milliseconds. On a busy machine they spin while the thread that they wait for has no
    core. Two threads then took four times as much processor time as one for the same work. A fresh tensor in large pages
    costs a third of the time.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Run the command line. Any wrong input gives one line and exit code 2."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    settle_environment()
    # Python does so on stderr by itself: what the encoding lacks, such as the Greek letter in µs, is escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    progress.wording = with_flags
    # A KeyboardInterrupt unwinds through every ``finally``, so a killed command cleans up like an interrupted
    # one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        # typer's own mode is not used, because it prints errors in a box and exits with other codes.
        code = app(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        code = _fail(_line_of(error), error)
    if code == TYPER_INTERRUPTED:
        code = _fail(INTERRUPTED, KeyboardInterrupt())
    sys.exit(code if isinstance(code, int) else 0)


def _line_of(error: BaseException) -> str:
    """Return the message of an error. An error that is flab's own fault is raised again."""
    if isinstance(error, FlabError):
        return with_flags(str(error))
    # A library may turn the exception of a signal into another exception.
    if isinstance(error, KeyboardInterrupt | typer.Abort) or _signals:
        return INTERRUPTED
    if isinstance(error, typer.exceptions.TyperException):
        message = wrong_number(error) or (error.format_message() if hasattr(error, "format_message") else str(error))
        option = getattr(error, "option_name", None)
        if any(option in parameter.opts for parameter in typer.main.get_command(app).params):
            return f"{message} here: give it before the command, as in flab {option} ..."
        return message if wrong_number(error) else f"{message}{_see_help(error)}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}"
    if isinstance(error, MemoryError):
        return (
            "out of memory: lower --tokens (plan, prune, sweep), --batch-size (eval, data), --micro-batch (recover) or "
            "--max-batch (measure), or use a machine with more"
        )
    raise error


def _see_help(error: typer.exceptions.TyperException) -> str:
    """Return the sentence that names the help of the command that was typed."""
    context = getattr(error, "ctx", None)
    if context is None:
        return ""
    # The name of the program itself may be a path, or ``python -m flab``.
    command = f"flab {context.info_name}" if context.parent is not None else "flab"
    return f"{'' if error.format_message().endswith(('.', '?')) else '.'} See {command} --help."


def with_flags(message: str) -> str:
    """Name the fields in a message of the library as this command's options: ```max_length``` is ``--max-length`` here."""
    if not FIELD.search(message):
        return message
    command = next((word for word in sys.argv[1:] if word in _flags()), "")
    flags = _flags().get(command, {})
    return FIELD.sub(lambda field: flags.get(field[1]) or flags.get(f"no_{field[1]}") or field[0], message)


@cache
def _flags() -> dict[str, dict[str, str]]:
    """For each command, the long option of each field: of ``max_length``, and of ``no_shuffle`` where it is turned off.

    An option that is called otherwise than the library's argument, such as ``--run`` for ``engines``, has that argument's name in
    the command's signature.
    """
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found: dict[str, dict[str, str]] = {}
    for name, command in commands.items():
        options = [(one.name, option) for one in command.params for option in one.opts if option.startswith("--")]
        found[name] = dict(reversed(options))  # the first name of an option wins
        found[name] |= {option[2:].replace("-", "_"): option for _, option in options}
    return found


def _fail(message: str, error: BaseException) -> int:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    sys.stderr.write(f"flab: {plain(message)}\n")
    return 2
