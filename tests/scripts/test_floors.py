"""The floors that ``make floors`` tests are those of pyproject.toml, each a version that can be pinned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import floors  # noqa: E402


def test_every_dependency_has_a_floor_below_what_is_developed_with():
    developed = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    found = floors.floors(ROOT / "pyproject.toml")
    assert "typer" in found
    assert set(found) <= set(developed)
    for name, floor in found.items():
        assert Version(floor) <= Version(developed[name])


def test_only_what_is_asked_for_goes_to_its_floor(tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a==3\nb==4\nc==5\n")
    assert floors.pins({"a": "1", "b": "2"}, constraints, []) == ["a==1", "b==2", "c==5"]
    assert floors.pins({"a": "1", "b": "2"}, constraints, ["b"]) == ["b==2", "a==3", "c==5"]
    with pytest.raises(KeyError, match="no dependencies: x"):
        floors.pins({"a": "1"}, constraints, ["x"])


def test_a_dependency_without_a_floor_is_an_error():
    with pytest.raises(KeyError, match="lower bound"):
        floors.floor_of(Requirement("torch<3"))
