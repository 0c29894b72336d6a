"""What a folder's sizes say about engines and quantised formats, against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flab.models.compatibility import loads_in, quantised, tensor_parallel_sizes
from flab.models.folder import Stored


def config(**changes):
    sizes = {
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
    }
    return SimpleNamespace(**sizes | changes)


def tensors(width: int) -> dict[str, Stored]:
    """A gate and a down projection of hidden size 256, and a norm."""
    return {
        "gate": Stored("F32", (width, 256)),
        "down": Stored("F32", (256, width)),
        "norm": Stored("F32", (256,)),
    }


def test_rows_of_whole_blocks_are_quantised_whole():
    for name in ("q8_0", "q4_0", "q4_k"):
        found = quantised(name, tensors(512))
        assert (found["falls_back"], found["of"], found["more_bytes"]) == (0, 2, 0.0)


@pytest.mark.parametrize(("name", "more"), [("q8_0", 7.5 / 8.5 / 2), ("q4_0", 11.5 / 4.5 / 2)])
def test_a_width_of_496_leaves_the_down_projection_in_f16(name, more):
    """496 is a multiple of 16 and not of 32: half of the weights need 16 bits instead of 8.5 or 4.5."""
    found = quantised(name, tensors(496))
    assert found["falls_back"] == 1
    assert found["more_bytes"] == pytest.approx(more)


def test_k_quants_fall_back_to_five_bits_where_blocks_of_32_fit():
    assert quantised("q4_k", tensors(480))["more_bytes"] == pytest.approx(1.0 / 4.5 / 2)
    assert quantised("q4_k", tensors(496))["more_bytes"] == pytest.approx(11.5 / 4.5 / 2)


def test_the_ratio_to_the_original_shows_what_the_fallback_eats():
    whole, partly = (quantised("q4_0", tensors(width), tensors(640)) for width in (480, 496))
    assert whole["bytes_ratio"] == pytest.approx(480 / 640)
    assert partly["bytes_ratio"] == pytest.approx(496 / 640 * (4.5 + 16) / 9)
    assert partly["bytes_ratio"] > 1.5 * partly["parameters_ratio"]
    assert partly["original"]["falls_back"] == 0


def test_tensor_parallel_sizes_divide_heads_and_width():
    assert tensor_parallel_sizes(config()) == [1, 2, 4, 8]
    assert tensor_parallel_sizes(config(intermediate_size=498)) == [1, 2]
    loads = loads_in(config(intermediate_size=498), True, [], False, tensors(498), (config(), tensors(512)))
    assert loads["vllm"]["tensor_parallel_sizes"] == [1, 2]
    assert loads["vllm"]["of_the_original"] == [1, 2, 4, 8]


def test_a_renumbered_vocabulary_needs_the_export():
    assert "flab export gguf" in loads_in(config(), True, [], True, {})["llama.cpp"]["needs"]
    assert "ids are its own" in loads_in(config(), True, [], False, {})["llama.cpp"]["needs"]
