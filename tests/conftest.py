"""Shared fixtures: pico checkpoints (built once a session) and a calibration file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pico


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


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
