"""A recipe file (YAML): the whole way from a model to its measured, recovered, smaller self. Read and checked; no torch.

Paths are relative to the recipe's own folder; ``bundled`` names what comes with flab. An unknown key is an error that
names the nearest one.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from flab import assets
from flab.errors import OptionError
from flab.recipe import Options, Recipe
from flab.recovery.settings import Training
from flab.recovery.strategies import Making

BUNDLED = "bundled"
T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """The ``data`` part of a recipe: what is asked, what must not be learned, and how answers are chosen."""

    instructions: tuple[str, ...]
    against: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    limit: int | None = None
    making: Making = field(default_factory=Making)


@dataclass(frozen=True)
class Evaluation:
    """The ``evaluate`` part of a recipe: the tasks and how they are asked."""

    tasks: tuple[str, ...]
    perturb: tuple[str, ...] = ()
    limit: int | None = None
    preset: str = "completion"
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 256
    batch_size: int = 64


@dataclass(frozen=True)
class RecipeFile:
    """All of a recipe; ``data`` and ``recover`` may both be absent, then nothing is trained."""

    path: Path
    model: str
    prune: Recipe
    data: Data | None
    recover: Training | None
    evaluate: Evaluation
    options: Options


SECTIONS = ("model", "prune", "data", "recover", "evaluate", "options")


def read_recipe(path: Path) -> RecipeFile:
    """Read and check a recipe.

    Raises:
        OptionError: not there, no YAML, an unknown key (with the nearest), a value of the wrong type or out of range.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"{path}: cannot be read ({error.strerror}); give a recipe, e.g. recipes/quickstart.yml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    top = _mapping(raw, str(path))
    _check_keys(top, SECTIONS, str(path))
    missing = [name for name in ("model", "evaluate") if name not in top]
    if missing:
        raise OptionError(f"{path}: {' and '.join(missing)} missing; a recipe has {', '.join(SECTIONS)}.")
    if ("data" in top) != ("recover" in top):
        raise OptionError(f"{path}: data and recover go together; give both, or neither to prune without training.")
    folder = path.parent
    prune = dict(_mapping(top.get("prune", {}), f"{path}: prune"))
    prune |= {n: _path(prune[n], folder, {BUNDLED: None}) for n in ("calibration",) if n in prune}
    prune |= {n: tuple(_path(p, folder) for p in _list(prune[n])) for n in ("corpus",) if n in prune}
    return RecipeFile(
        path,
        _model(top["model"], folder),
        _made(Recipe, prune, f"{path}: prune", {"calibration", "corpus"}),
        _data(top["data"], path) if "data" in top else None,
        _made(Training, _mapping(top["recover"], f"{path}: recover"), f"{path}: recover") if "recover" in top else None,
        _evaluation(top["evaluate"], path),
        _made(Options, _mapping(top.get("options", {}), f"{path}: options"), f"{path}: options"),
    )


def _model(value: Any, folder: Path) -> str:
    """A folder, a hub id, or the bundled model."""
    if not isinstance(value, str) or not value:
        raise OptionError(f"model: got {value!r}, allowed a folder, a hub id, or {BUNDLED}.")
    if value == BUNDLED:
        return str(assets.model_path())
    local = folder / Path(value).expanduser()
    return str(local) if local.exists() else value


def _data(raw: Any, path: Path) -> Data:
    given = dict(_mapping(raw, f"{path}: data"))
    own = {n: given.pop(n) for n in ("instructions", "against", "text", "limit") if n in given}
    names = [f.name for f in fields(Making)] + ["instructions", "against", "text", "limit"]
    _check_keys(given, names, f"{path}: data")
    if isinstance(given.get("mix"), Mapping):
        given["mix"] = tuple((str(kind), float(share)) for kind, share in given["mix"].items())
    making = _made(Making, given, f"{path}: data", {"mix"})
    known = {BUNDLED: assets.recovery_path()}
    tasks = {BUNDLED: BUNDLED_TASKS}
    if not own.get("instructions"):
        raise OptionError(f"{path}: data: instructions missing; name one or more JSONL files, or {BUNDLED}.")
    return Data(
        _paths(own["instructions"], path.parent, known),
        _paths(own.get("against", []), path.parent, tasks),
        _paths(own.get("text", []), path.parent, {}),
        own.get("limit"),
        making,
    )


BUNDLED_TASKS = (assets.problems_path(), assets.cot_path(), assets.outputs_path())


def _evaluation(raw: Any, path: Path) -> Evaluation:
    given = dict(_mapping(raw, f"{path}: evaluate"))
    if not given.get("tasks"):
        raise OptionError(f"{path}: evaluate: tasks missing; name one or more task files, or {BUNDLED}.")
    given["tasks"] = _paths(given["tasks"], path.parent, {BUNDLED: BUNDLED_TASKS})
    given["perturb"] = tuple(map(str, _list(given.get("perturb", []))))
    return _made(Evaluation, given, f"{path}: evaluate", {"tasks", "perturb"})


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _path(value: Any, folder: Path, known: Mapping[str, Any] | None = None) -> Any:
    if known is not None and value in known:
        return known[value]
    return folder / Path(str(value)).expanduser()


def _paths(values: Any, folder: Path, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Files, each as it is where it is none here (a hub id, KIND:FILE)."""
    found: list[str] = []
    for value in _list(values):
        named = known.get(value) if isinstance(value, str) else None
        if named is not None:
            found += [str(one) for one in (named if isinstance(named, tuple) else (named,))]
            continue
        local = folder / Path(str(value)).expanduser()
        found.append(str(local) if local.exists() else str(value))
    return tuple(found)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise OptionError(f"{where}: got {type(value).__name__}, expected names with values.")
    return value


def _check_keys(given: Mapping[str, Any], allowed: Any, where: str) -> None:
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(key, list(allowed), 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(allowed)}."
            raise OptionError(f"{where}: unknown key {key!r}: {hint}")


def _made(kind: type[T], given: Mapping[str, Any], where: str, free: set[str] = frozenset()) -> T:  # type: ignore[assignment]
    """An instance of a dataclass from values whose names and types are checked; those in ``free`` are as they are."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    _check_keys(given, known, where)
    hints = get_type_hints(kind)
    values = {n: v if n in free else _typed(v, hints[n], f"{where}: {n}") for n, v in given.items()}
    lacking = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    assert not lacking, lacking
    try:
        return kind(**values)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value if it is of the field's type; whole numbers pass for floats, lists for tuples."""
    choices = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    for one in choices:
        base = get_origin(one) or one
        if base is tuple and isinstance(value, list):
            return tuple(value)
        if base is float and type(value) is int:
            return float(value)
        if type(value) is base:
            return value
    names = " or ".join("null" if one is type(None) else getattr(one, "__name__", str(one)) for one in choices)
    raise OptionError(f"{where}: got {value!r}, expected {names}.")
