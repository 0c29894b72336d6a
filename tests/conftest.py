"""Shared fixtures: pico checkpoints (built once a session) and a calibration file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pico


@pytest.fixture(autouse=True, scope="session")
def _little_general_text() -> Iterator[None]:
    """Bits per byte on 2 kB: the figure itself is tested where it is measured."""
    import flab.generality

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flab.generality, "GENERAL_BYTES", 2000)
        yield


@pytest.fixture
def verify_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``prune`` verifies in this process: a fresh one takes seconds and has its own tests."""
    import flab.pipeline
    from flab.verify import verify

    monkeypatch.setattr(flab.pipeline, "check", lambda folder, against: verify(Path(folder), Path(against)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Pico models gain nothing from more, and threads that wait for a busy core make them crawl."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory):
    """Build (once) and give the folder of a family's pico checkpoint."""
    root, built = tmp_path_factory.mktemp("pico"), {}

    def give(family: str = "qwen2", **settings: object) -> Path:
        key = family + "".join(f"-{k}-{v}" for k, v in sorted(settings.items()))
        if key not in built:
            built[key] = pico.build(family, root / key, **settings)
        return built[key]

    return give


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small instruction file in JSONL."""
    return pico.write_calibration(tmp_path_factory.mktemp("calibration") / "rows.jsonl")


@pytest.fixture(scope="session")
def recipe(calibration_file: Path):
    """A recipe over the small instruction file that takes a second."""
    from flab import Recipe

    def give(**changes: object) -> Recipe:
        return Recipe(**{"calibration": calibration_file, **pico.QUICK, **changes})

    return give


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen2 pico model that has learned the calibration rows, so that its layers do real work."""
    return pico.train(pico.build("qwen2", tmp_path_factory.mktemp("trained") / "model"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The public benchmark files: FLAB_DATA, or shared/data next to the repository."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FLAB_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no benchmark files in {folder}: set FLAB_DATA")
    return folder
