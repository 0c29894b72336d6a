"""Fixtures: a run's folder built by hand, to be copied, changed and written into."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import made_run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with measurements and a sweep; tests take copies."""
    return made_run.build(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run to write into."""
    return Path(shutil.copytree(whole_run, tmp_path / "RUN"))


@pytest.fixture
def changed(run: Path) -> Callable[[str, Callable[[dict[str, Any]], None]], Path]:
    """Change one of the run's files in place; returns the run."""

    def change(name: str, by: Callable[[dict[str, Any]], None]) -> Path:
        value = json.loads((run / name).read_text(encoding="utf-8"))
        by(value)
        made_run.write(run / name, value)
        return run

    return change
