"""A pruned pico model, and what it is trained on and with."""

from __future__ import annotations

from pathlib import Path

import pytest

import pico
from flab import Options, prune
from flab.recovery.settings import Training


@pytest.fixture(scope="session")
def pruned_folder(trained_folder: Path, recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pico model with half of its body gone, not refitted, so that there is something to recover."""
    out = tmp_path_factory.mktemp("pruned") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flab.pipeline.check", lambda folder, against: {"ok": True, "checks": [], "loads_in": {}})
        prune(trained_folder, out, recipe(remove=0.4, refit="none", output_projection=False, finalists=1), Options())
    return out


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the pico grammar."""
    return pico.write_calibration(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture
def training():
    """A training of a second or two."""

    def give(**changes: object) -> Training:
        quick = {"steps": 6, "length": 64, "batch": 4, "micro_batch": 4, "evaluations": 3, "held_out": 0.2}
        return Training(**{**quick, **changes})

    return give


@pytest.fixture
def check_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process: a fresh one takes seconds and has its own tests."""
    from flab.verify import verify

    monkeypatch.setattr("flab.recovery.train.check", lambda folder, against: verify(Path(folder), Path(against)))
