"""Read and check a recipe file (YAML), which describes a whole run from pruning to the report. Do not import torch.

Paths are relative to the recipe's own folder, and ``bundled`` stands for the files that come with flab. An unknown key is
an error whose message names the nearest known key.
"""

from __future__ import annotations

import difflib
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from flab import assets
from flab.data.rows import is_hub_id, read_rows
from flab.data.samples import files_under
from flab.errors import OptionError
from flab.evaluation.evaluate import read_tasks, sandbox_for
from flab.evaluation.prompts import Settings
from flab.evaluation.runs import check_names
from flab.evaluation.tasks import parse_task_argument
from flab.files import read_regular
from flab.footprint.settings import Measuring, carbon_intensity
from flab.models.options import Options, meant
from flab.pruning.recipe import Recipe
from flab.recovery.settings import Training
from flab.recovery.strategies import Making

BUNDLED = "bundled"
MOST_BYTES = 2**16  # the size of a recipe file
T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """The ``data`` part of a recipe: the instructions, the evaluation files to avoid, and how answers are chosen."""

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

    def __post_init__(self) -> None:
        assert self.settings

    @property
    def settings(self) -> Settings:
        """The settings of the run. Raises OptionError if a value is out of range."""
        return Settings(
            self.preset, self.samples, self.temperature, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
        )


@dataclass(frozen=True)
class RecipeFile:
    """A whole recipe. ``measure`` is optional. ``data`` and ``recover`` are optional together: without them, flab prunes only."""

    path: Path
    model: str
    prune: Recipe
    data: Data | None
    recover: Training | None
    evaluate: Evaluation
    measure: Measuring | None
    options: Options

    @property
    def inputs(self) -> list[str | Path]:
        """All data files and hub ids that the recipe names, without the kinds of tasks."""
        texts: list[str | Path] = [*self.prune.inputs]
        texts += [*self.data.instructions, *self.data.text] if self.data is not None else []
        tasks = [*self.evaluate.tasks, *(self.data.against if self.data is not None else ())]
        texts += [parse_task_argument(task)[1] for task in tasks]
        return texts + ([self.measure.text] if self.measure is not None and self.measure.text is not None else [])


SECTIONS = ("model", "prune", "data", "recover", "evaluate", "measure", "options")
BUNDLED_TASKS = (assets.problems_path(), assets.cot_path(), assets.outputs_path())
TYPES = {
    float: "a number", int: "a whole number", str: "text", bool: "true or false", tuple: "a list", type(None): "null",
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Loads safe YAML without duplicate keys or aliases, in which ``1e-3`` is a number.

    Aliases are refused because a few lines of nested aliases can expand to more values than fit into memory.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported: write the value out", mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            keys.add(str(key.value))
        return node


# YAML 1.1 requires a dot in a number with an exponent, so it would read a learning rate of 1e-3 as text.
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))  # type: ignore[no-untyped-call]


def read_recipe(path: Path) -> RecipeFile:
    """Read and check a recipe.

    Raises:
        OptionError: the file is missing or not YAML, a key is unknown (the message names the nearest one), or a value has
            the wrong type or is out of range.
    """
    top = _mapping(_load(path), str(path))
    _check_keys(top, SECTIONS, str(path))
    missing = [name for name in ("model", "evaluate") if name not in top]
    if missing:
        raise OptionError(f"{path}: {' and '.join(missing)} missing; a recipe has {', '.join(SECTIONS)}.")
    if ("data" in top) != ("recover" in top):
        raise OptionError(f"{path}: data and recover go together; give both, or neither to prune without training.")
    recover = _made(Training, top["recover"], f"{path}: recover") if "recover" in top else None
    return RecipeFile(
        path,
        _model(top["model"], path),
        _prune(top.get("prune"), path),
        _data(top["data"], path) if "data" in top else None,
        recover,
        _evaluation(top["evaluate"], path),
        _measuring(top["measure"], path) if "measure" in top else None,
        _options(top.get("options"), path),
    )


def check_inputs(recipe: RecipeFile) -> None:
    """Check what only later stages read before the first one starts: tasks, their sandbox, instructions and texts."""
    chosen = recipe.evaluate
    data = recipe.data
    costs = recipe.measure
    if costs is not None and costs.grid is not None:
        carbon_intensity(costs.grid)
    if costs is not None and costs.text is not None:
        files_under(costs.text)
    tasks = read_tasks(chosen.tasks, chosen.limit, chosen.perturb, chosen.settings.seed)
    check_names(tasks)
    sandbox_for(tasks, recipe.options)
    if data is not None:
        if data.against:
            read_tasks(data.against, None, (), 0)
        for source in data.instructions:
            read_rows(source, "train", 1)
        for text in data.text:
            files_under(Path(text))


def _options(raw: Any, path: Path) -> Options:
    where = f"{path}: options"
    if "overwrite" in _mapping(raw, where):
        raise OptionError(
            f"{where}: overwrite is only for single commands; a run replaces what has changed: leave it out."
        )
    return _made(Options, raw, where)


def _load(path: Path) -> Any:
    """Return the content of the file."""
    try:
        data = read_regular(path)
        if len(data) > MOST_BYTES:
            raise OptionError(
                f"{path}: {len(data)} bytes, but a recipe has at most {MOST_BYTES}; give a recipe, not data."
            )
        return yaml.load(data.decode("utf-8-sig"), _Loader)
    except OSError as error:
        raise OptionError(
            f"{path}: cannot be read ({error.strerror}); give a recipe, e.g. recipes/quickstart.yml"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no such date
        text = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise OptionError(f"{path}: cannot be read as YAML ({text})") from None


def _model(value: Any, path: Path) -> str:
    """Return a folder, a hub id, or the bundled model."""
    if not isinstance(value, str) or not value:
        raise OptionError(f"{path}: model: got {value!r}, allowed a folder, a hub id, or {BUNDLED}.")
    if value == BUNDLED:
        if not (assets.model_path() / "config.json").is_file():
            raise OptionError(f"the bundled model is missing at {assets.model_path()}: run scripts/train_reference.py.")
        return str(assets.model_path())
    local = _beside(path, value)
    return str(local) if local.exists() or value.startswith((".", "/", "~")) else value


def _prune(raw: Any, path: Path) -> Recipe:
    where = f"{path}: prune"
    given = dict(_mapping(raw, where))
    # ``bundled`` means the rows that come with flab, which are also the default.
    if (calibration := given.get("calibration")) is not None:
        given["calibration"] = (
            None if calibration == BUNDLED else _beside(path, _typed(calibration, str, f"{where}: calibration"))
        )
    if "corpus" in given:
        given["corpus"] = tuple(_beside(path, one) for one in _texts(given["corpus"], f"{where}: corpus"))
    return _made(Recipe, given, where, {"calibration", "corpus"})


def _data(raw: Any, path: Path) -> Data:
    where = f"{path}: data"
    given = dict(_mapping(raw, where))
    own = [f.name for f in fields(Data) if f.name != "making"]
    _check_keys(given, [*own, *(f.name for f in fields(Making))], where)
    found = {name: given.pop(name, None) for name in own}
    if not found["instructions"]:
        raise OptionError(f"{where}: instructions missing; name one or more JSONL files, or {BUNDLED}.")
    if "mix" in given:
        shares = _mapping(given["mix"], f"{where}: mix")
        given["mix"] = tuple((kind, _typed(share, float, f"{where}: mix: {kind}")) for kind, share in shares.items())
    return Data(
        _sources(found["instructions"], f"{where}: instructions", path, (assets.recovery_path(),)),
        _sources(found["against"], f"{where}: against", path, BUNDLED_TASKS),
        tuple(str(_beside(path, one)) for one in _texts(found["text"], f"{where}: text")),
        _limit(found["limit"], f"{where}: limit"),
        _made(Making, given, where, {"mix"}),
    )


def _evaluation(raw: Any, path: Path) -> Evaluation:
    where = f"{path}: evaluate"
    given = dict(_mapping(raw, where))
    _check_keys(given, [f.name for f in fields(Evaluation)], where)
    if not given.get("tasks"):
        raise OptionError(f"{where}: tasks missing; name one or more task files, or {BUNDLED}.")
    given["tasks"] = _sources(given["tasks"], f"{where}: tasks", path, BUNDLED_TASKS)
    given["perturb"] = _texts(given.get("perturb"), f"{where}: perturb")
    given["limit"] = _limit(given.get("limit"), f"{where}: limit")
    return _made(Evaluation, given, where, {"tasks", "perturb"})


def _measuring(raw: Any, path: Path) -> Measuring:
    where = f"{path}: measure"
    given = dict(_mapping(raw, where))
    if given.get("text") is not None:
        given["text"] = _beside(path, _typed(given["text"], str, f"{where}: text"))
    if isinstance(given.get("grid"), int | float):
        given["grid"] = str(given["grid"])
    return _made(Measuring, given, where, {"text"})


def _limit(value: Any, where: str) -> int | None:
    limit: int | None = _typed(value, int | None, where)
    if limit is not None and limit < 1:
        raise OptionError(f"{where}: got {limit}, allowed 1 or more, or null for all.")
    return limit


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """Return one text or a list of texts as a list. Null gives an empty list."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    for one in found:
        if not isinstance(one, str) or not one.strip():
            raise OptionError(f"{where}: got {one!r}, expected text or a list of texts.")
    return tuple(found)


def _beside(path: Path, name: str) -> Path:
    """Return the path of a file in a recipe, which is relative to the recipe's folder and not to the current one."""
    return path.parent.resolve() / Path(name).expanduser()


def _sources(value: Any, where: str, path: Path, bundled: tuple[Path, ...]) -> tuple[str, ...]:
    """Return files or hub ids, with or without ``KIND:``. A name that cannot be a hub id is a file, even if it is missing."""
    found: list[str] = []
    for one in _texts(value, where):
        if one == BUNDLED:
            found += map(str, bundled)
            continue
        kind, source = parse_task_argument(one)
        local = _beside(path, source)
        # A file beside the recipe takes precedence over a hub data set of the same name.
        name = source if is_hub_id(source) and not local.exists() else str(local)
        found.append(f"{kind}:{name}" if kind else name)
    return tuple(found)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError(f"{where}: got {value!r:.40}, expected names with values.")
    for key in value:
        if not isinstance(key, str):
            raise OptionError(f"{where}: got the key {key!r}, expected a name.")
    return value


def _check_keys(given: Mapping[str, Any], allowed: Any, where: str) -> None:
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(key, list(allowed), 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(allowed)}."
            raise OptionError(f"{where}: unknown key {key!r}: {hint}")


def _made(kind: type[T], raw: Any, where: str, free: set[str] = frozenset()) -> T:  # type: ignore[assignment]
    """Build a dataclass from values and check their names and types. Values of the fields in ``free`` are not checked."""
    given = _mapping(raw, where)
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
    """Return the value if it has the field's type. Whole numbers are accepted as floats, and lists as tuples."""
    choices = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    for one in choices:
        base = get_origin(one) or one
        if base is tuple and isinstance(value, list):
            return tuple(_typed(part, get_args(one)[0], where) for part in value)
        # This compares ``type(value)``, because isinstance would accept true as the number 1.
        if base is float and type(value) in (int, float):
            if not abs(value) <= sys.float_info.max:
                raise OptionError(f"{where}: got {value!r:.60}, expected a finite number.")
            return float(value)
        if type(value) is base:
            if base is int and abs(value) > sys.maxsize:
                raise OptionError(f"{where}: got {value!s:.60}..., expected a whole number of at most 19 digits.")
            return value
    names = " or ".join(TYPES[get_origin(one) or one] for one in choices)
    example = meant(value, int in choices) if isinstance(value, str) and {int, float} & set(choices) else None
    raise OptionError(f"{where}: got {value!r:.60}, expected {names}{f', such as {example}' if example else ''}.")
