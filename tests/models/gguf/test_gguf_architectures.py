"""Settings, names and rotary factors against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flab.errors import UnsupportedModelError
from flab.models.gguf.architectures import (
    architecture_of,
    rope_factors,
    settings_of,
    tensor_name,
    window_warnings,
)
from support import pico

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(family: str = "llama", **changes):
    return AutoConfig.for_model(family, **{**pico.SIZES, "vocab_size": 480, **changes})


def test_llama3_factors_are_those_of_transformers():
    """transformers scales the frequencies; a GGUF file holds what each is divided by."""
    made = config(head_dim=128, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](made, torch.device("cpu"))
    plain = 1.0 / (LLAMA3["rope_theta"] ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128))
    factors = torch.tensor(rope_factors(made))
    assert torch.allclose(plain / factors, scaled, rtol=1e-5)
    assert factors.min() == 1.0
    assert factors.max() == pytest.approx(8.0)


def test_other_models_have_no_factors():
    assert rope_factors(config()) is None


def test_settings_name_every_size():
    settings = settings_of(config("qwen3", head_dim=16, rms_norm_eps=1e-6))
    assert settings["block_count"] == 5
    assert settings["feed_forward_length"] == 64
    assert settings["attention.key_length"] == settings["rope.dimension_count"] == 16
    assert settings["attention.head_count_kv"] == 2
    assert settings["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_starcoder2_has_the_other_norm():
    assert settings_of(config("starcoder2", norm_epsilon=1e-4))["attention.layer_norm_epsilon"] == pytest.approx(1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rotary_embeddings_are_written(kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    settings = settings_of(config(rope_parameters=rope))
    assert (settings["rope.scaling.type"], settings["rope.scaling.factor"]) == (kind, 4.0)
    assert ("rope.scaling.original_context_length" in settings) == (kind == "yarn")


def test_what_llama_cpp_does_not_compute_is_refused():
    with pytest.raises(UnsupportedModelError, match="rope_type 'dynamic'"):
        settings_of(config(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}))
    with pytest.raises(UnsupportedModelError, match="hidden_act 'relu'"):
        architecture_of(config(hidden_act="relu"))
    with pytest.raises(UnsupportedModelError, match="model_type 'phi'"):
        architecture_of(SimpleNamespace(model_type="phi"))
    with pytest.raises(UnsupportedModelError, match="strange"):
        tensor_name("model.layers.0.strange.weight")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.3.mlp.c_proj.bias", "blk.3.ffn_down.bias"),
        ("model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight"),
    ],
)
def test_tensors_have_their_names(name, made):
    assert tensor_name(name) == made


def test_a_window_that_llama_cpp_does_not_know_is_warned_of():
    assert window_warnings(config("mistral", sliding_window=None)) == []
    assert window_warnings(config("mistral", sliding_window=128)) == []  # as long as the model reads
    assert "last 64 tokens" in window_warnings(config("mistral", sliding_window=64))[0]
