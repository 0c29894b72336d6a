"""Planning and cutting where the model is not on the CPU as it is loaded: spread by accelerate, and on a CUDA device."""

from __future__ import annotations

import json

import pytest
import torch

from flab import Options, apply
from flab.models.checkpoint import load
from flab.pruning.pipeline import plan

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("refit", ["newton", "descent", "reconstruction"])
@pytest.mark.parametrize("device", ["balanced", pytest.param("cuda", marks=needs_cuda)])
def test_another_device_cuts_as_the_cpu_does(device, refit, pico_folder, recipe, tmp_path):
    """Bit for bit where ``balanced`` is the CPU; on a GPU other sums give nearly the same figures."""
    folder, asked = pico_folder("qwen2", dtype=torch.bfloat16), recipe(remove=0.3, refit=refit)
    here, there = (plan(folder, asked, Options(device=one, dtype="float32")) for one in ("cpu", device))
    assert there.removed_fraction >= 0.3
    if torch.cuda.is_available():
        assert there.kl_nats_per_token == pytest.approx(here.kl_nats_per_token, rel=0.1, abs=1e-4)
    else:
        decisions = ("vocabulary", "layers", "width", "refit", "kl_nats_per_token")
        assert all(getattr(here, name) == getattr(there, name) for name in decisions)
    there.write(tmp_path / "plan.json")
    made = [apply(folder, tmp_path / "plan.json", tmp_path / name, Options(device=device)) for name in ("one", "two")]
    assert (made[0] / "model.safetensors").read_bytes() == (made[1] / "model.safetensors").read_bytes()
    assert json.loads((made[0] / "config.json").read_text())["num_hidden_layers"] == there.layers.after
    assert load(made[0]).model.dtype == torch.bfloat16
