"""The house rules that a machine can check: which way imports go, what may load torch, how long things get."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flab

ROOT = Path(flab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# A module imports only from ranks below its own; within a rank only where SAME_RANK says so.
RANKS = {
    "__init__": 0,
    "errors": 0,
    "progress": 1,
    "assets": 1,
    "budget": 1,
    "files": 1,
    "heap": 1,
    "plans": 2,
    "data": 3,
    "recipe": 3,
    "families": 4,
    "models": 4,
    "objective": 4,
    "calibrate": 5,
    "checkpoint": 5,
    "cuts": 6,
    "sandbox": 2,
    "evaluation": 6,
    "checking": 6,
    "generality": 7,
    "verify": 7,
    "prepare": 7,
    "vocabulary": 7,
    "search": 7,
    "measuring": 8,
    "footprint": 8,
    "judging": 8,
    "material": 8,
    "planning": 9,
    "pipeline": 10,
    "recovery": 10,
    "reporting": 10,
    "show": 10,
    "show_eval": 10,
    "arguments": 10,
    "early": 10,
    "demo": 11,
    "recipe_arguments": 11,
    "show_footprint": 11,
    "sweeping": 11,
    "cli_eval": 11,
    "show_recover": 11,
    "recipe_file": 11,
    "summary": 12,
    "run_folder": 12,
    "stages": 13,
    "cli_recover": 14,
    "cli_report": 14,
    "cli": 15,
    "__main__": 16,
}
INSIDE = {
    name: {name} for name in ("cuts", "data", "models", "evaluation", "footprint", "recovery", "reporting", "sandbox")
}  # packages whose modules may import each other
SKETCH = [  # the layers of the design, outermost first; no module may import from a list before its own
    {"cli"},
    {"cli_eval", "cli_recover", "cli_report"},
    {"stages", "sweeping"},
    {"summary", "run_folder"},
    {"recipe_file", "recipe_arguments", "show_recover", "show_footprint"},
    {"arguments", "early", "pipeline", "demo", "show", "show_eval"},
    {"recovery", "reporting"},
    {"measuring", "planning", "material", "judging", "footprint"},
    {"search", "prepare", "vocabulary"},
    {"cuts", "evaluation", "checkpoint", "calibrate", "objective", "families", "models"},
    {"plans", "recipe", "budget", "data", "sandbox", "assets", "progress", "files", "heap"},
    {"errors"},
]
NO_TORCH = {
    "errors",
    "recipe",
    "plans",
    "budget",
    "data",
    "models",
    "assets",
    "progress",
    "files",
    "heap",
    "arguments",
    "early",
    "cli",
    "cli_eval",
    "cli_recover",
    "cli_report",
    "recipe_arguments",
    "recipe_file",
    "reporting",
    "sandbox",
    "show",
    "show_eval",
    "show_recover",
    "show_footprint",
    "__init__",
}
LIGHT_PACKAGES = {"data", "models"}  # none of their files imports anything heavy
HEAVY = {
    "pyarrow",
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
}
MAX_FILE, MAX_FUNCTION = 400, 60


def home(path: Path) -> str:
    """The top-level module or package a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


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


def inner_imports(path: Path) -> set[str]:
    """Top-level flab modules that a file imports from."""
    known = set(RANKS)
    names = [n.split(".") for n in imports(path) if n == "flab" or n.startswith("flab.")]
    return {n[1] if len(n) > 1 and n[1] in known else "__init__" for n in names}


def test_every_module_has_a_rank():
    assert {home(p) for p in FILES} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    own = home(path)
    wrong = {name for name in inner_imports(path) if RANKS[name] >= RANKS[own] and name not in INSIDE.get(own, set())}
    assert not wrong, f"{own} (rank {RANKS[own]}) imports {sorted(wrong)}"


def test_ranks_agree_with_the_design():
    level = {name: number for number, names in enumerate(SKETCH) for name in names}
    for path in FILES:
        own = level.get(home(path))
        above = {n for n in inner_imports(path) if own is not None and level.get(n, 99) < own}
        assert not above, f"{path.name} imports {sorted(above)} from above"


def test_cuts_and_evaluation_do_not_know_each_other():
    for own, other in (("cuts", "evaluation"), ("evaluation", "cuts")):
        files = [p for p in FILES if home(p) == own]
        assert files
        assert all(other not in inner_imports(p) for p in files)


def test_the_import_walk_sees_imports():
    """Shows that the tests above can fail: the walk finds those at the top and those inside functions."""
    assert {"planning", "files", "cuts"} <= inner_imports(ROOT / "pipeline.py")
    assert {"pipeline", "show"} <= inner_imports(ROOT / "cli.py")
    assert "flab.pipeline.prune" not in imports(ROOT / "cli.py", inside_functions=False)


def imported_at_once(name: str) -> list[str]:
    """What a module imports outside of functions; of a package that is light as a whole, what any of its files does."""
    package = ROOT / name
    if not package.is_dir():
        return imports(ROOT / f"{name}.py", inside_functions=False)
    files = sorted(package.rglob("*.py")) if name in LIGHT_PACKAGES else [package / "__init__.py"]
    return [full for path in files for full in imports(path, inside_functions=False)]


def heavy_when_imported(module: str) -> set[str]:
    """Heavy packages that importing the module loads, through other flab modules too; read, not run."""
    todo, seen, heavy = [module], set(), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for full in imported_at_once(name):
            head, _, rest = full.partition(".")
            if head == "flab" and (inner := rest.split(".")[0]) in RANKS:
                todo.append(inner)
            elif head in HEAVY:
                heavy.add(head)
    return heavy


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_light_modules_import_nothing_heavy(module):
    assert heavy_when_imported(module) == set()


def test_the_heavy_walk_finds_torch():
    assert "torch" in heavy_when_imported("pipeline")
    assert {"torch", "transformers"} <= heavy_when_imported("checkpoint")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
