"""Packing calibration windows into batches."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, processors

from flab.data.samples import Sample
from flab.models.tokenizer import load_tokenizer, special_prefix
from flab.pruning.calibration import Window, calibration_set, thinned, windows_of
from support import pico


@pytest.mark.parametrize(("wanted", "least", "most"), [(300, 150, 600), (10**9, 8000, 10**9), (1, 1, 120)])
def test_thinning_keeps_whole_rows_of_all_lengths(wanted, least, most):
    windows = [Window(list(range(1, 2 + n)), 0, n) for n in range(120) for _ in range(2)]
    data = calibration_set(windows, batch_tokens=1024)
    few = thinned(data, wanted)
    tokens = sum(batch.num_tokens for batch in few.fit)
    assert least <= tokens <= most
    assert not few.compare
    whole = {
        tuple(row[valid].tolist()) for batch in data.fit for row, valid in zip(batch.ids, batch.valid, strict=True)
    }
    for batch in few.fit:
        assert batch.ids.shape == batch.valid.shape == batch.answer.shape == batch.weight.shape
        for row, valid in zip(batch.ids, batch.valid, strict=True):
            assert tuple(row[valid].tolist()) in whole


def test_thinning_a_part_reaches_short_and_long_rows():
    windows = [Window(list(range(1, 2 + n)), 0, n) for n in range(120)]
    lengths = torch.cat([b.valid.sum(1) for b in thinned(calibration_set(windows, batch_tokens=1024), 600).fit])
    assert int(lengths.min()) < 40
    assert int(lengths.max()) > 80


def test_windows_begin_as_the_tokenizer_begins_a_text():
    """Every runtime sends BOS where tokenizer.json says so; a model that has one behaves otherwise without it."""
    plain = pico.tokenizer()
    with_bos = Tokenizer.from_str(plain.to_str())
    bos = with_bos.token_to_id("<|im_start|>")
    with_bos.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", bos)]
    )
    assert special_prefix(plain) == []
    assert special_prefix(with_bos) == [bos]
    samples = [Sample("def f(x):\n", "    return x + 1\n" * 9)]
    windows = windows_of(samples, with_bos, 16, None, [bos])
    without = windows_of(samples, with_bos, 15, None)
    assert len(windows) > 1
    assert [w.ids for w in windows] == [[bos, *w.ids] for w in without]
    assert [w.answer_from for w in windows] == [w.answer_from + 1 for w in without]
    assert windows[0].ids == with_bos.encode(samples[0].text).ids[:16]


@pytest.mark.parametrize("has_bos", [False, True])
def test_a_promised_bos_that_the_tokenizer_does_not_send_is_named(tmp_path, has_bos):
    """Of such a folder transformers 4 begins a text with BOS, and transformers 5 does not."""
    folder = pico.build("llama", tmp_path / "model")
    promised = {"bos_token": "<|im_start|>", "add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(promised))
    if has_bos:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[special])
        tokenizer.save(str(folder / "tokenizer.json"))
    warnings = load_tokenizer(folder)[2]
    assert ["says add_bos_token, but tokenizer.json puts nothing before a text" in line for line in warnings] == (
        [] if has_bos else [True]
    )
