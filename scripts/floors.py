"""Test flab with the oldest versions of its dependencies that pyproject.toml allows, in an environment of its own.

    python scripts/floors.py                      # all dependencies at their floors, all quick tests
    python scripts/floors.py --only typer rich    # these at their floors, the others as constraints.txt has them
    python scripts/floors.py -- tests/cli -k help # other tests

It downloads what it installs. The environment stays, in .venv-floors by default; a second run goes faster.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
import venv
from collections.abc import Collection, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FLOOR = ">="


def floors(pyproject: Path) -> dict[str, str]:
    """The lowest version of each dependency, by name; KeyError where one has none."""
    found = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    return {one.name: floor_of(one) for one in map(Requirement, found)}


def floor_of(requirement: Requirement) -> str:
    """The version after ``>=``."""
    versions = [part.version for part in requirement.specifier if part.operator == FLOOR]
    if len(versions) != 1:
        raise KeyError(f"{requirement}: expected one lower bound, as in name>=1.2")
    return versions[0]


def pins(known: dict[str, str], constraints: Path, only: Collection[str]) -> list[str]:
    """One ``name==version`` for each line of the constraints: the floor where it is to be tested, else the line as it is.

    Raises:
        KeyError: ``only`` names what is no dependency.
    """
    if unknown := set(only) - set(known):
        raise KeyError(f"no dependencies: {', '.join(sorted(unknown))}")
    chosen = set(only) or set(known)
    lines = [line.strip() for line in constraints.read_text(encoding="utf-8").splitlines() if line.strip()]
    kept = [line for line in lines if line.partition("==")[0] not in chosen]
    return [*(f"{name}=={known[name]}" for name in known if name in chosen), *kept]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environment, install, test; returns the tests' exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-floors", help="where the environment is made")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these at their floors")
    parser.add_argument("tests", nargs="*", default=[], help="what pytest is given, after --")
    given = parser.parse_args(arguments)
    if not (given.venv / "bin" / "python").exists():
        venv.create(given.venv, with_pip=True)
    wanted = pins(floors(ROOT / "pyproject.toml"), ROOT / "constraints.txt", given.only)
    pinned = given.venv / "floors.txt"
    pinned.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    python = str(given.venv / "bin" / "python")
    print("\n".join(wanted))
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", str(pinned), "-e", f"{ROOT}[dev]"], check=True)
    return subprocess.run([python, "-m", "pytest", *(given.tests or ["-x"])], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
