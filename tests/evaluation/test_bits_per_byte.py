"""Bits per byte against a naive computation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flab.errors import DataError, UnsupportedModelError
from flab.evaluation import bits_per_byte as text_module
from flab.evaluation.bits_per_byte import bits_per_byte, split_windows
from flab.models.checkpoint import load

TEXTS = ["def add(a, b):\n    return a + b\n", "é" * 20 + "\n# class Thing:\n" * 4, "x", ""]


def naive_bits(model, ids, window):
    """Bits of each token but the first, one forward pass each, from the window the docstring names."""
    bits = 0.0
    with torch.no_grad():
        for at in range(1, len(ids)):
            start = 0
            if at >= window:
                stride = window // 2
                block_end = min(window + ((at - window) // stride + 1) * stride, len(ids))
                start = block_end - window
            logits = model(torch.tensor([ids[start:at]])).logits[0, -1].double()
            bits -= torch.log_softmax(logits, -1)[ids[at]].item() / math.log(2)
    return bits


@pytest.mark.parametrize("window", [8, 9, 256])
def test_equals_the_naive_computation(model, tokenizer, window):
    expected = sum(naive_bits(model, tokenizer.encode(text).ids, window) for text in TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    found = bits_per_byte(model, tokenizer, TEXTS, window=window, batch_size=3)
    assert found == pytest.approx(expected / num_bytes, rel=1e-5)


def test_chunks_and_batches_do_not_matter(model, tokenizer, monkeypatch):
    whole = bits_per_byte(model, tokenizer, TEXTS, window=16, batch_size=100)
    monkeypatch.setattr(text_module, "CHUNK", 5)
    assert bits_per_byte(model, tokenizer, TEXTS, window=16, batch_size=1) == pytest.approx(whole, rel=1e-6)


def test_no_logits_beyond_a_chunk(model, tokenizer, monkeypatch):
    monkeypatch.setattr(text_module, "CHUNK", 5)
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    bits_per_byte(model, tokenizer, TEXTS, window=64)
    assert max(rows) <= 5


def test_half_precision_sums_in_float32(model, tokenizer):
    exact = bits_per_byte(model, tokenizer, TEXTS, window=64)
    half = bits_per_byte(model.to(torch.bfloat16), tokenizer, TEXTS, window=64)
    assert half == pytest.approx(exact, rel=0.05)
    assert model.dtype == torch.bfloat16


@given(st.integers(0, 60), st.integers(2, 20))
def test_each_token_but_the_first_counts_once(num_tokens, window):
    ids = list(range(num_tokens))
    windows = split_windows(ids, window)
    counted = [token for one in windows for token in one.ids[one.first :]]
    assert counted == ids[1:]
    assert all(len(one.ids) <= window for one in windows)
    assert all(one.first >= window // 2 for one in windows[1:])


def test_refuses_what_it_cannot_count(model, tokenizer):
    with pytest.raises(DataError, match="nothing to predict"):
        bits_per_byte(model, tokenizer, ["", "x"], window=64)
    model.get_output_embeddings = lambda: None
    with pytest.raises(UnsupportedModelError, match="output matrix"):
        bits_per_byte(model, tokenizer, TEXTS, window=64)


@pytest.mark.parametrize("family", ["granite", "gemma2"])  # one divides its logits, the other bounds them
def test_a_familys_own_logits_count(family, pico_folder):
    opened = load(pico_folder(family))
    expected = sum(naive_bits(opened.model, opened.tokenizer.encode(text).ids, 64) for text in TEXTS)
    found = bits_per_byte(opened.model, opened.tokenizer, TEXTS, window=64)
    assert found == pytest.approx(expected / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


def test_the_models_mode_comes_back(model, tokenizer):
    model.train()
    bits_per_byte(model, tokenizer, TEXTS, window=64)
    assert model.training
