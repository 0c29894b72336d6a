"""The house rules that a machine can check: which way imports go, what may load torch, how long things get.

Everything follows from one list, ``HOUSE``.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import flab

ROOT = Path(flab.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HEAVY_LIBRARIES = {
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "safetensors",
    "datasets",
    "peft",
    "trl",
    "matplotlib",
    "pyarrow",
    "gguf",
}
# which of them importing a place may load
LIGHT: set[str] = set()
NUMPY = {"numpy"}
HEAVY = HEAVY_LIBRARIES
# Places from the ground up. A module belongs to the longest name that begins its own; it imports from its own place and
# from places above it in this list, never from one below. A room is the first part of a name.
HOUSE: dict[str, set[str]] = {
    "errors": LIGHT,
    "version": LIGHT,
    "progress": LIGHT,
    "sandbox": LIGHT,
    "files": LIGHT,
    "assets": LIGHT,
    "data": LIGHT,
    "models.shape": LIGHT,
    "models.options": LIGHT,
    "models.child": LIGHT,
    "models.memory": LIGHT,
    "models.families": LIGHT,
    "models.scorer": HEAVY,
    "models.folder": LIGHT,
    "models.source": LIGHT,
    "models.tensors": LIGHT,
    "models.weights": HEAVY,
    "models.mixture": HEAVY,
    "models.branch": HEAVY,
    "models.layers": HEAVY,
    "models.shards": HEAVY,
    "models.stock": LIGHT,
    "models.oldest": LIGHT,
    "models.tokenizer": HEAVY,
    "models.chat": LIGHT,
    "models.checkpoint": HEAVY,
    "models.text_part": HEAVY,
    "models.gguf.architectures": LIGHT,
    "models.compatibility": LIGHT,
    "models.probes": LIGHT,
    "models.engines": HEAVY,
    "models.gguf": HEAVY,
    "models.serving": HEAVY,
    "models": HEAVY,
    "evaluation": HEAVY,
    "footprint": HEAVY,
    "pruning.objective": HEAVY,
    "pruning.budget": LIGHT,
    "pruning.refits": LIGHT,
    "pruning.plan": LIGHT,
    "pruning.journal": LIGHT,
    "pruning.recipe": LIGHT,
    "pruning.calibration": HEAVY,
    "pruning.cuts": HEAVY,
    "pruning.refit": HEAVY,
    "pruning.surgeon": HEAVY,
    "pruning.check": LIGHT,
    "pruning.verify": HEAVY,
    "pruning.vocabulary": HEAVY,
    "pruning.material": HEAVY,
    "pruning.search": HEAVY,
    "pruning.advice": HEAVY,
    "pruning.finalists": HEAVY,
    "pruning.planner": HEAVY,
    "pruning.sibling": HEAVY,
    "pruning.pipeline": HEAVY,
    "pruning": HEAVY,
    "recovery": HEAVY,
    "runs.report": LIGHT,
    "runs.recipe_file": NUMPY,
    "runs.folder": HEAVY,
    "runs.sweep": HEAVY,
    "runs.stages": HEAVY,
    "runs": HEAVY,
    "cli": LIGHT,
    "__init__": LIGHT,
    "__main__": LIGHT,
}
ORDER = {place: number for number, place in enumerate(HOUSE)}
MAX_ROOMS, MAX_FLOORS, MAX_TOP_FILES = 16, 9, 8
MAX_FILE, MAX_FUNCTION = 400, 60
by_path = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def module_of(path: Path) -> str:
    """The name of a file's module below flab: ``pruning.cuts.layers``, ``pruning.cuts`` for a package's ``__init__``."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


@cache
def place_of(module: str) -> str:
    """The place a module belongs to; a name that is none (``flab.plan``) is the package's own face."""
    parts = module.split(".")
    names = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((name for name in names if name in HOUSE), "__init__")


def room_of(module: str) -> str:
    return place_of(module).split(".")[0]


@cache
def imports(path: Path, inside_functions: bool = True) -> list[str]:
    """Full names of everything a file imports; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def inner_imports(path: Path, inside_functions: bool = True) -> set[str]:
    """Modules of flab that a file imports, or imports from."""
    names = {n for n in imports(path, inside_functions) if n == "flab" or n.startswith("flab.")}
    return {n.removeprefix("flab").removeprefix(".") or "__init__" for n in names}


@cache
def arrows() -> dict[str, set[str]]:
    """For each room the rooms that it imports from."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        found.setdefault(room_of(module), set()).update(room_of(name) for name in inner_imports(path))
    return {room: others - {room} for room, others in found.items()}


def test_every_place_exists_and_every_module_has_a_place():
    assert {place_of(module) for module in MODULES} == set(HOUSE)
    assert {room_of(module) for module in MODULES} == {module.split(".")[0] for module in MODULES}


@by_path
def test_imports_go_downwards(path):
    own = place_of(module_of(path))
    wrong = {name for name in inner_imports(path) if ORDER[place_of(name)] > ORDER[own]}
    assert not wrong, f"{own} imports {sorted(wrong)}, which stand below it in HOUSE"


def test_the_house_is_small():
    """Rooms, floors (a room stands above all that it imports), and files beside the packages."""

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in arrows()[room]), default=0)

    assert len(arrows()) <= MAX_ROOMS
    assert max(map(floor, arrows())) <= MAX_FLOORS
    assert len(list(ROOT.glob("*.py"))) <= MAX_TOP_FILES


def test_cuts_and_evaluation_do_not_know_each_other():
    cuts = [path for module, path in MODULES.items() if module.startswith(("pruning.cuts", "pruning.refit"))]
    assert cuts
    assert not {name for path in cuts for name in inner_imports(path) if room_of(name) == "evaluation"}
    assert "pruning" not in arrows()["evaluation"] | arrows()["footprint"]


def test_the_sandbox_stands_alone():
    assert arrows()["sandbox"] <= {"errors", "progress"}


def test_the_import_walk_sees_imports():
    """Shows that the tests above can fail: the walk finds those at the top and those inside functions."""
    assert {"planner", "surgeon"} <= {
        name.split(".")[1] for name in inner_imports(ROOT / "pruning" / "pipeline.py") if "." in name
    }
    assert {"evaluation", "pruning", "runs"} <= arrows()["cli"]
    assert "flab.pruning.pipeline.prune" in imports(ROOT / "cli" / "prune.py")
    assert "flab.pruning.pipeline.prune" not in imports(ROOT / "cli" / "prune.py", inside_functions=False)


def heavy_when_imported(module: str) -> set[str]:
    """Heavy libraries that importing the module loads, through other flab modules too; read, not run."""
    todo, seen, heavy = [module], set(), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        todo += [".".join(parts[:size]) for size in range(1, len(parts))]  # a package's __init__ runs first
        if name not in MODULES:
            continue
        for full in imports(MODULES[name], inside_functions=False):
            head, _, rest = full.partition(".")
            if head == "flab" and rest:
                todo.append(rest)
            elif head in HEAVY_LIBRARIES:
                heavy.add(head)
    return heavy


@pytest.mark.parametrize("module", [module for module in MODULES if HOUSE[place_of(module)] != HEAVY])
def test_light_modules_import_nothing_heavy(module):
    assert heavy_when_imported(module) <= HOUSE[place_of(module)]


def test_the_heavy_walk_finds_torch():
    assert "torch" in heavy_when_imported("pruning.pipeline")
    assert {"torch", "transformers"} <= heavy_when_imported("models.checkpoint")


@by_path
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION}
    assert not long


@by_path
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_tests_lie_in_the_rooms_that_they_test():
    rooms = {module.split(".")[0] for module in MODULES} | {"scripts", "benchmarks"}
    lying = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")} - {Path(__file__).name}
    assert {name.removeprefix("test_").removesuffix(".py") for name in lying} <= rooms


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_no_test_imports_another(path):
    assert not [name for name in imports(path) if name.startswith(("test_", "conftest"))]
