"""The options of the commands, most of them built from the fields that they fill, and how commands print.

A command names the settings that it takes (``@takes(recipe=Recipe, options=Options)``) and gets them filled and checked; their
names, types, defaults and help come from the fields (:func:`flab.models.options.setting`).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flab.errors import OptionError
from flab.files import as_path
from flab.models.options import EXPERT, HELP, meant, settings_of

ADVANCED = "Advanced options"
# Of the commands that work long and would only write the same again.
KEEPS = {
    "overwrite": "Replace the output if it exists. An output of this very command that passes its check is kept; remove it "
    "to make it again."
}

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face model, or its hub id.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="PATH", help="Path of the output.")]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Generate only part I of N of the answers. The same command without --shard merges the parts.",
        rich_help_panel=ADVANCED,
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar=" ", help="Print the result as one JSON object on stdout.")]


def emit(value: Mapping[str, Any]) -> None:
    """Print one object on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def show_shard(report: Mapping[str, Any]) -> None:
    """Print the place of a shard's answers and the remaining steps."""
    from flab.progress import reply

    left = report["wanted"] - report["generated"]
    rest = f"{left} of other shards are missing" if left else "none is missing: repeat without --shard to continue"
    reply(f"shard {report['shard']} is done: {report['generated']} of {report['wanted']} answers; {rest}")
    reply(f"its answers are in {report['file']}")


def takes(
    without: Sequence[str] = (), helps: Mapping[str, str] | None = None, **kinds: type
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of settings classes, one keyword per class. It receives them filled.

    Fields in ``without`` get no option and keep their defaults. ``helps`` holds other help texts than the fields' own.
    """
    own_helps = helps or {}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(command, eval_str=True).parameters
        # The command's own parameters stay as declared, and each settings class is replaced by one keyword for
        # each of its fields.
        own = [p.replace(kind=p.KEYWORD_ONLY) for name, p in declared.items() if name not in kinds]
        names = {kind: [name for name in settings_of(kind) if name not in without] for kind in kinds.values()}

        def run(**given: Any) -> None:
            filled = {key: _filled(kind, names[kind], given) for key, kind in kinds.items()}
            command(**filled, **given)

        built = [_parameter(kind, name, own_helps.get(name)) for kind in kinds.values() for name in names[kind]]
        parameters = [*own, *built] if not own or own[-1].name != "json_" else [*own[:-1], *built, own[-1]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        return run

    return decorate


def _parameter(kind: type, name: str, help: str | None = None) -> inspect.Parameter:
    """Return the option of one field, as typer reads it from a signature. A flag that is on can only be turned off."""
    declared = settings_of(kind)[name]
    hint = get_type_hints(kind)[name]
    default = None if hint in READERS and not declared.default else declared.default
    text = help or declared.metadata[HELP]
    if default is True:
        name = f"no_{name}"
        text = f"Do not {text[0].lower()}{text[1:]}"
        default = False
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=text,
        rich_help_panel=ADVANCED if declared.metadata[EXPERT] else None,
        metavar=METAVARS.get(hint),
        show_default=hint is not bool,
    )
    typed = READERS[hint][0] if hint in READERS else hint
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[typed, option])


def _filled(kind: type, names: Sequence[str], given: dict[str, Any]) -> Any:
    """Return an instance of the settings class from the typed options, which are removed from ``given``."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in names:
        value = given.pop(name) if name in given else not given.pop(f"no_{name}")
        values[name] = READERS[hints[name]][1](value) if hints[name] in READERS else value
    return kind(**values)


def read_numbers(text: str | None) -> tuple[int, ...] | None:
    """Read ``3,5``. Raises OptionError for anything else."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--drop-layers: got {text!r}, expected numbers separated by commas, e.g. 3,5.") from None


def read_shares(parts: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    """Read ``KIND=SHARE``. Raises OptionError for anything else."""
    found = []
    for part in parts or ():
        kind, _, share = part.partition("=")
        try:
            found.append((kind.strip(), float(share)))
        except ValueError:
            raise OptionError(f"--mix: got {part!r}, allowed KIND=SHARE, e.g. code=2.") from None
    return tuple(found)


def wrong_number(error: Exception) -> str | None:
    """Return the message for an option that should be a number and is not, with an example; None for another error."""
    errors = getattr(error.__cause__, "errors", None)  # pydantic's, which reads the numbers for typer
    option = getattr(error, "param", None)
    if errors is None or option is None or not errors()[0]["type"].startswith(("int", "float", "finite")):
        return None
    got = str(errors()[0]["input"])
    whole = errors()[0]["type"].startswith("int")
    usual = option.default if type(option.default) in (int, float) else None
    # A percentage means a fraction, unless the option is in points itself.
    typed = got.rstrip("% ") if "percentage points" in (option.help or "") else got
    example = meant(typed, whole) or str(usual if usual is not None else 8 if whole else 0.5)
    name = max(option.opts, key=len) if option.param_type_name == "option" else option.metavar
    several = [meant(part, whole) for part in got.split(",")]
    if option.multiple and len(several) > 1 and None not in several:
        return f"{name}: got {got!r:.60}, expected one number at a time, such as {' '.join(f'{name} {x}' for x in several)}."
    what = CLAUSE.split(option.help or "")[0]
    what = f" ({what[0].lower() if what[1:2].islower() else what[0]}{what[1:]})" if what else ""
    return f"{name}: got {got!r:.60}, expected a {'whole ' if whole else ''}number such as {example}{what}."


CLAUSE = re.compile(r"[.,;](?: |$)")  # what ends the first clause of a help text
# Types of fields whose typed form differs from the stored one: the type that typer reads, and its conversion.
READERS: dict[Any, tuple[Any, Callable[[Any], Any]]] = {
    Path | None: (Path | None, lambda path: as_path(path) if path is not None else None),
    tuple[Path, ...]: (list[Path] | None, lambda paths: tuple(map(as_path, paths or ()))),
    tuple[int, ...] | None: (str | None, read_numbers),
    tuple[tuple[str, float], ...]: (list[str] | None, read_shares),
}
METAVARS: dict[Any, str] = {
    bool: " ",  # or the help would say <bool>
    **dict.fromkeys((int, int | None), "N"),
    **dict.fromkeys((float, float | None), "X"),
    **dict.fromkeys((str, str | None), "NAME"),
    **dict.fromkeys((Path | None, tuple[Path, ...]), "PATH"),
    tuple[int, ...] | None: "N,N,...",
    tuple[tuple[str, float], ...]: "KIND=SHARE",
}
