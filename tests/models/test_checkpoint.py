"""The precision that a model is cut in."""

from __future__ import annotations

import pytest
import torch

from flab.models.checkpoint import cutting_dtype
from flab.models.options import Options
from support import pico


@pytest.mark.parametrize(
    ("asked", "size", "expected"), [("auto", 1, "mixed"), ("auto", 2**40, "float32"), ("float32", 1, "float32")]
)
def test_large_models_of_bfloat16_are_cut_in_mixed_precision(asked, size, expected, tmp_path, monkeypatch):
    folder = pico.build("llama", tmp_path / "half", dtype=torch.bfloat16)
    monkeypatch.setattr("flab.models.checkpoint.MIXED_BYTES", size)
    monkeypatch.setattr("flab.models.checkpoint.multiplies_bfloat16", lambda device: True)
    assert cutting_dtype(folder, Options(dtype=asked)) == expected
    monkeypatch.setattr("flab.models.checkpoint.multiplies_bfloat16", lambda device: False)
    assert cutting_dtype(folder, Options(dtype=asked)) == "float32"


def test_a_small_model_is_cut_in_float32_on_a_gpu_too(tmp_path, monkeypatch):
    folder = pico.build("llama", tmp_path / "half", dtype=torch.bfloat16)
    monkeypatch.setattr("flab.models.options.cuda_devices", lambda: 1)
    assert cutting_dtype(folder, Options(device="cuda")) == "float32"
    assert cutting_dtype(folder, Options(device="cuda", dtype="bfloat16")) == "bfloat16"
