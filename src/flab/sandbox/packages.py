"""Lend the sandbox, read-only, the installed packages that tests need, with their dependencies and nothing else."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
INSIDE = "/packages"  # where the jail shows them
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)([^;]*)(;.*)?")


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the full names of all modules that the source imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "__import__":
            found |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant) and type(one.value) is str}
    return found


def packages_needed(source: str) -> list[str]:
    """Return the names of the packages outside the standard library that the source imports."""
    try:
        names = imported_modules(ast.parse(source))
    except NOT_PYTHON:
        return []
    return sorted({name.partition(".")[0] for name in names} - set(sys.stdlib_module_names))


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    """Map the top-level names of modules to the distributions that contain them."""
    return importlib.metadata.packages_distributions()


def is_installed(name: str) -> bool:
    """Return whether flab's own environment has a top-level module. Do not import it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def missing(names: Iterable[str]) -> list[str]:
    """Return the names that are not installed, in order."""
    return [name for name in names if not is_installed(name)]


@lru_cache(maxsize=256)
def entries(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """List the files and folders to lend for some modules: the name in the folder of packages, and the place on the disk."""
    found: dict[str, str] = {}
    for name in names:
        # Packages are lent one by one. Lending all of site-packages would show the program what else is installed.
        spec = importlib.util.find_spec(name) if is_installed(name) else None
        if spec is None:
            continue
        place = (spec.submodule_search_locations or [spec.origin or ""])[0]
        if Path(place).exists():
            found[Path(place).name] = place
        for distribution in _with_dependencies(_distributions().get(name, [])):
            found |= _of_distribution(distribution)
    return tuple(sorted(found.items()))


def _with_dependencies(names: Iterable[str]) -> list[str]:
    """List distributions and their dependencies, without extras."""
    waiting = list(names)
    seen = dict[str, None]()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        try:
            requires = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen[name] = None
        # The requirements of extras were not installed for this package, so they are not lent.
        parsed = [REQUIREMENT.match(line) for line in requires if "extra ==" not in line]
        waiting += [one[1] for one in parsed if one is not None]
    return list(seen)


def _of_distribution(name: str) -> dict[str, str]:
    """Map the top-level files and folders of a distribution to their places."""
    files = importlib.metadata.distribution(name).files or []
    tops = {
        file.parts[0]: Path(str(file.locate())).parents[len(file.parts) - 2] for file in files if len(file.parts) > 1
    }
    tops |= {file.parts[0]: Path(str(file.locate())) for file in files if len(file.parts) == 1}
    return {top: str(place) for top, place in tops.items() if top not in ("..", "__pycache__") and place.exists()}


def folder_of(name: str) -> str:
    """Return the folder that contains a module, for the level without a jail."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    place = Path((spec.submodule_search_locations or [spec.origin or ""])[0])
    return str(place.parent)
