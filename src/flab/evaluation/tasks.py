"""Task files: questions to a model and the tests or references that decide, from JSONL, CSV or a hub data set.

The fields of the first row decide the kind, see ``FIELDS``. If a file fits several kinds, the user must name one.
Prompts are used as the file has them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal, get_args

from flab.data.mbpp import MBPP_FIELDS, is_mbpp, problem_fields
from flab.data.rows import ROW_SUFFIXES, Row, is_hub_id, read_rows, suffix_of
from flab.errors import DataError, OptionError

Kind = Literal["code", "cot", "output"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FIELDS: dict[Kind, tuple[str, ...]] = {
    "code": ("prompt", "entry_point", "test"),
    "cot": ("prompt", "cot"),
    "output": ("code", "input", "output"),
}
ID_FIELDS = ("task_id", "id")
# Fields that name the common origin of several problems, such as a book.
CLUSTER_FIELDS = ("cluster", "source")
# Public tasks by name, and the hub data set that each stands for.
NAMED_TASKS = {
    "humaneval": "openai/openai_humaneval",
    "mbpp": "google-research-datasets/mbpp",
    "cruxeval": "cruxeval-org/cruxeval",
    "humaneval_plus": "evalplus/humanevalplus",
    "mbpp_plus": "evalplus/mbppplus",
}
FORMATS = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in FIELDS.items()) + f"; MBPP: {MBPP_FIELDS}"


@dataclass(frozen=True)
class Problem:
    """One function to complete, the tests that decide, and the reference solution if there is one."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str | None = None


@dataclass(frozen=True)
class Explanation:
    """One prompt and the chain of thought that is expected."""

    task_id: str
    prompt: str
    cot: str


@dataclass(frozen=True)
class Prediction:
    """One function, the arguments of a call, and the ``repr`` of what it returns."""

    task_id: str
    code: str
    input: str
    output: str
    entry_point: str


Item = Problem | Explanation | Prediction


@dataclass(frozen=True)
class TaskFile:
    """The items of one task and their source. ``skipped`` counts those that a perturbation left out.

    ``clusters`` names the cluster of each item, by its id, if the file gives one.
    """

    name: str
    kind: Kind
    items: tuple[Item, ...]
    source: str
    sha256: str
    perturbation: str | None = None
    skipped: int = 0
    clusters: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The items of a task of kind code."""
        return tuple(item for item in self.items if isinstance(item, Problem))


def make_task(
    name: str, kind: Kind, items: Sequence[Item], source: str, perturbation: str | None = None, skipped: int = 0
) -> TaskFile:
    """Join items into a task. The digest covers the items, in order."""
    content = json.dumps([asdict(item) for item in items], ensure_ascii=True, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return TaskFile(name, kind, tuple(items), source, digest, perturbation, skipped)


def parse_task_argument(argument: str) -> tuple[Kind | None, str]:
    """Split ``KIND:SOURCE``; any other text is a source (``C:\\x.jsonl``, ``ID:CONFIG``, ``./code:x.jsonl``)."""
    head, colon, rest = argument.partition(":")
    for kind in KINDS:
        if colon and head == kind:
            if not rest.strip():
                raise OptionError(f"`tasks` {argument}: no file after the kind; give {kind}:FILE.")
            return kind, rest
    if not argument.strip():
        raise OptionError("`tasks`: got nothing; give FILE, KIND:FILE or a hub data set id")
    return None, argument


def named_task(argument: str, data_dir: Path | None = None) -> str:
    """Return the file or hub data set that a name of :data:`NAMED_TASKS` stands for; any other argument as it is.

    With ``data_dir`` it is the file of that name there: ``humaneval`` finds ``HumanEval.jsonl``, ``mbpp`` ``MBPP_test.jsonl``.

    Raises:
        DataError: there is no such folder, or no such file in it.
    """
    kind, source = parse_task_argument(argument)
    if source not in NAMED_TASKS or Path(source).exists():
        return argument
    found = NAMED_TASKS[source] if data_dir is None else str(_file_named(source, data_dir))
    return f"{kind}:{found}" if kind else found


def _file_named(name: str, folder: Path) -> Path:
    """Return the file of rows in a folder that has this name, except for capitals, signs and a final ``test``."""
    if not folder.is_dir():
        raise DataError(f"`data_dir` {folder}: no such folder; give one that holds {name}.jsonl.")
    files = sorted(path for path in folder.iterdir() if path.is_file() and suffix_of(path) in ROW_SUFFIXES)
    fitting = [path for path in files if _letters(path.name.partition(".")[0]).removesuffix("test") == _letters(name)]
    if not fitting:
        raise DataError(
            f"`tasks` {name}: {folder} holds no {name}.jsonl; put the rows there, or leave out `data_dir` to load "
            f"{NAMED_TASKS[name]} from the hub."
        )
    return fitting[0]


def _letters(name: str) -> str:
    """Return the text in small letters and digits, with a plus sign spelled out."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "plus"))


def read_task(source: str | Path, kind: Kind | None = None, limit: int | None = None) -> TaskFile:
    """Read at most ``limit`` items of a file, or of the test split of a data set.

    Raises:
        OptionError: the limit is below 1, or the fields fit several kinds and none was named.
        DataError: the file is missing, empty or malformed, or its ids are not unique; names file and line.
    """
    source = str(source)
    if limit is not None and limit < 1:
        raise OptionError(f"the limit on problems is {limit}; it must be 1 or more, or left out for all")
    rows = read_rows(source, "test", limit)
    if not rows:
        raise DataError(f"{source}: holds no problem; give rows with one of: {FORMATS}")
    fitting = kinds_of(rows[0][1])
    chosen = _choose_kind(source, kind, fitting, rows[0])
    items = _items(rows, chosen)
    task = make_task(_name_of(source, chosen, fitting), chosen, items, source)
    return replace(task, clusters=_clusters(rows, items))


def _clusters(rows: Sequence[tuple[str, Row]], items: Sequence[Item]) -> dict[str, str]:
    """Return the cluster of each item; nothing if all share one or each has its own."""
    for name in CLUSTER_FIELDS:
        values = [row.get(name) for _, row in rows]
        # A field in which all rows are equal, or all different, groups nothing.
        if all(isinstance(value, str | int) for value in values) and 1 < len(set(values)) < len(values):
            return {item.task_id: str(value) for item, value in zip(items, values, strict=True)}
    return {}


def kinds_of(row: Row) -> list[Kind]:
    """Return the kinds whose fields the row has, in the order of ``KINDS``."""
    found = {kind for kind, names in FIELDS.items() if all(row.get(name) is not None for name in names)}
    return [kind for kind in KINDS if kind in found or (kind == "code" and is_mbpp(row))]


def _choose_kind(source: str, kind: Kind | None, fitting: list[Kind], first: tuple[str, Row]) -> Kind:
    if kind is None and len(fitting) > 1:
        forms = " or ".join(f"{one}:{source}" for one in fitting)
        raise OptionError(f"{source}: the fields fit {' and '.join(fitting)}; name the kind: {forms}")
    if kind is None and not fitting:
        where, row = first
        raise DataError(f"{where}: the fields {', '.join(map(str, row)) or '(none)'} fit no task; needed: {FORMATS}")
    return kind or fitting[0]


def _name_of(source: str, kind: Kind, fitting: list[Kind]) -> str:
    """Return the file's stem, or the hub id's last part; the kind is added if the file holds several."""
    if Path(source).exists() or not is_hub_id(source):
        name = Path(source).stem if Path(source).is_file() else Path(source).name
    else:
        name = source.rpartition("/")[2].replace(":", "-")
    return f"{name}-{kind}" if len(fitting) > 1 else name


def _items(rows: list[tuple[str, Row]], kind: Kind) -> list[Item]:
    """Read the rows. A missing id becomes a hash of the content, with a number if rows are equal."""
    items: list[Item] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        item = READERS[kind](row, where)
        given = _given_id(row, where)
        if given in seen:
            first = seen[given].removeprefix(where.rpartition(":")[0] + ":")
            raise DataError(f"{where}: task_id {given!r} is on line {first} too; ids must be unique")
        # Unlike a row's number, an id made from the content stays the same when other rows come or go.
        name = given or _hash_id(item, kind, seen)
        seen[name] = where
        items.append(replace(item, task_id=name))
    return items


def _given_id(row: Row, where: str) -> str | None:
    """Return the row's ``task_id`` or ``id``, None if it is missing or blank."""
    value = next((row[name] for name in ID_FIELDS if row.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise DataError(f"{where}: task_id is {type(value).__name__}; allowed are text and whole numbers")
    if isinstance(value, str):
        check_text(value, "task_id", where)
    return str(value).strip() or None if value is not None else None


def _hash_id(item: Item, kind: Kind, taken: Container[str]) -> str:
    """Return twelve hex digits of the item's content, the same on every run."""
    content = "\0".join(getattr(item, name) for name in FIELDS[kind])
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def check_text(value: object, name: str, where: str, blank: bool = False) -> str:
    """Return the value if it is text that UTF-8 can hold, and not blank unless ``blank`` allows it."""
    if not isinstance(value, str):
        got = "missing" if value is None else f"{type(value).__name__}, not text"
        raise DataError(f"{where}: {name} is {got}; give text, or name another kind with KIND:FILE")
    if not blank and not value.strip():
        raise DataError(f"{where}: {name} is blank; give text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(f"{where}: {name} holds half of a surrogate pair, which is not a character; repair the file")
    return value


def _problem(row: Row, where: str) -> Problem:
    """Return a problem in HumanEval's or MBPP's form. A blank reference counts as missing."""
    if "entry_point" not in row and is_mbpp(row):
        row = problem_fields(row, where)
    prompt, entry_point, test = (check_text(row.get(name), name, where) for name in FIELDS["code"])
    solution = row.get("canonical_solution")
    if solution is not None:
        solution = check_text(solution, "canonical_solution", where, blank=True)
    has_reference = solution is not None and solution.strip()
    return Problem("", prompt, entry_point.strip(), test, solution if has_reference else None)


def _prediction(row: Row, where: str) -> Prediction:
    """Return a call's input and output. Without ``entry_point`` the last function that the code defines is called."""
    code, output = (check_text(row.get(name), name, where) for name in ("code", "output"))
    arguments = check_text(row.get("input") or "", "input", where, blank=True)
    entry_point = row.get("entry_point")
    if entry_point is None:
        entry_point = _last_function(code, where)
    return Prediction("", code, arguments, output, check_text(entry_point, "entry_point", where).strip())


def _last_function(code: str, where: str) -> str:
    try:
        names = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: code is not Python ({error}); repair it or give entry_point") from error
    if not names:
        raise DataError(f"{where}: code defines no function at the top level; give entry_point")
    return names[-1]


READERS: dict[Kind, Callable[[Row, str], Item]] = {
    "code": _problem,
    "cot": lambda row, where: Explanation("", *(check_text(row.get(name), name, where) for name in FIELDS["cot"])),
    "output": _prediction,
}
