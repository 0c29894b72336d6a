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


def sizes(width: int):
    return config(), tensors(width)


def test_rows_of_whole_blocks_are_quantised_whole():
    for name in ("q8_0", "q4_0", "q4_k"):
        found = quantised(name, sizes(512))
        assert (found["falls_back"], found["of"], found["more_bytes"]) == (0, 2, 0.0)


def whole_bits(width: int, bits: float) -> float:
    """Bits of both matrices and, in float32, of the norm, for each of the 256 numbers of the hidden size."""
    return 2 * width * bits + 32


@pytest.mark.parametrize(
    ("name", "more"), [("q8_0", 496 * 7.5 / whole_bits(496, 8.5)), ("q4_0", 496 * 11.5 / whole_bits(496, 4.5))]
)
def test_a_width_of_496_leaves_the_down_projection_in_f16(name, more):
    """496 is a multiple of 16 and not of 32: half of the weights need 16 bits instead of 8.5 or 4.5."""
    found = quantised(name, sizes(496))
    assert found["falls_back"] == 1
    assert found["more_bytes"] == pytest.approx(more)


def test_k_quants_fall_back_to_five_bits_where_blocks_of_32_fit():
    assert quantised("q4_k", sizes(480))["more_bytes"] == pytest.approx(480 / whole_bits(480, 4.5))
    assert quantised("q4_k", sizes(496))["more_bytes"] == pytest.approx(496 * 11.5 / whole_bits(496, 4.5))


def test_the_ratio_to_the_original_shows_what_the_fallback_eats():
    whole, partly = (quantised("q4_0", sizes(width), sizes(640)) for width in (480, 496))
    assert whole["bytes_ratio"] == pytest.approx(whole_bits(480, 4.5) / whole_bits(640, 4.5))
    assert partly["bytes_ratio"] == pytest.approx((496 * (4.5 + 16) + 32) / whole_bits(640, 4.5))
    assert partly["bytes_ratio"] > 1.5 * partly["parameters_ratio"]
    assert partly["original"]["falls_back"] == 0


@pytest.mark.parametrize(("tied", "head"), [(True, "model.embed_tokens.weight"), (False, "lm_head.weight")])
def test_the_matrix_that_makes_the_logits_takes_more_bits(tied, head):
    """Q8_0 where the others are Q4_0, and Q6_K where they are Q4_K; a tied head's own copy is not written."""
    made = config(tie_word_embeddings=tied)
    stored = {head: Stored("F32", (1000, 256)), "other": Stored("F32", (500, 256))}
    copy = {"lm_head.weight": Stored("F32", (1000, 256))} if tied else {}
    for name, bits in (("q8_0", 8.5), ("q4_0", 8.5), ("q4_k", 6.5625)):
        right = (1000 * bits + 500 * (8.5 if name == "q8_0" else 4.5)) * 256 / 8
        assert quantised(name, (made, stored | copy))["bytes"] == right


def test_tensor_parallel_sizes_divide_heads_and_width():
    assert tensor_parallel_sizes(config()) == [1, 2, 4, 8]
    assert tensor_parallel_sizes(config(intermediate_size=498)) == [1, 2]
    loads = loads_in(config(intermediate_size=498), True, [], False, tensors(498), (config(), tensors(512)))
    assert loads["vllm"]["tensor_parallel_sizes"] == [1, 2]
    assert loads["vllm"]["of_the_original"] == [1, 2, 4, 8]


def test_a_renumbered_vocabulary_needs_the_export():
    assert "flab export gguf" in loads_in(config(), True, [], True, {})["llama.cpp"]["needs"]
    assert "ids are its own" in loads_in(config(), True, [], False, {})["llama.cpp"]["needs"]
