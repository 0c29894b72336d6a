"""Greedy generation in batches: equal to one at a time, cut exactly, nothing of the model changed."""

import pytest
import torch

from flab.errors import DataError
from flab.evaluation.generate import (
    FakeGenerator,
    Generation,
    StopStrings,
    TransformersGenerator,
    cut_at_stop,
    model_eos_ids,
)


def greedy_by_hand(model, tokenizer, prompt, num_tokens):
    """Greedy decoding without a cache, padding, or any of transformers' generation code."""
    ids = tokenizer.encode(prompt).ids
    made = []
    with torch.no_grad():
        for _ in range(num_tokens):
            logits = model(torch.tensor([ids + made])).logits[0, -1]
            made.append(int(logits.argmax()))
            if made[-1] == 0:
                break
    return made


def test_batches_equal_one_at_a_time(model, tokenizer, prompts):
    prompts = prompts[:5]
    together = TransformersGenerator(model, tokenizer, batch_size=2).generate(prompts, 14, [])
    for prompt, generation in zip(prompts, together, strict=True):
        made = greedy_by_hand(model, tokenizer, prompt, 14)
        ended = made[-1] == 0
        assert generation.num_tokens == len(made)
        assert generation.finish_reason == ("eos" if ended else "length")
        text = tokenizer.decode(made[:-1] if ended else made, skip_special_tokens=False)
        assert generation.text == text


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stop_strings_cut_exactly(model, tokenizer, prompts, batch_size):
    free = TransformersGenerator(model, tokenizer).generate(prompts, 24, [])
    pieces = {made.text[at : at + 2] for made in free for at in (9, 14)}
    stop = sorted(piece for piece in pieces if len(piece) == 2 and piece.isascii())[:3]
    cut = TransformersGenerator(model, tokenizer, batch_size).generate(prompts, 24, stop)
    assert any(made.finish_reason == "stop" for made in cut)
    for without, made in zip(free, cut, strict=True):
        assert made.text == cut_at_stop(without.text, stop)
        if made.text == without.text:
            assert made == without
        else:
            assert made.finish_reason == "stop"
            assert made.num_tokens <= without.num_tokens


def test_rows_stop_early_and_by_themselves(tokenizer):
    prompt, row = tokenizer.encode("x").ids, tokenizer.encode("ab\ndef c").ids
    other = tokenizer.encode("zzzzzzzzzzzzzzz").ids
    stopper = StopStrings(tokenizer, ["\ndef "], len(prompt), 2)
    length = min(len(row), len(other))
    seen = [stopper(torch.tensor([prompt + row[:n], prompt + other[:n]]), None).tolist() for n in range(1, length + 1)]
    done_at = next(n for n in range(1, len(row) + 1) if "\ndef " in tokenizer.decode(row[:n]))
    assert stopper.lengths == [done_at, None]
    assert [first for first, _ in seen] == [n >= done_at for n in range(1, length + 1)]


def test_the_earliest_stop_wins():
    assert cut_at_stop("a\nclass B\ndef c", ["\ndef ", "\nclass "]) == "a"
    assert cut_at_stop("abc", ["\n"]) == "abc"
    assert cut_at_stop("abc", []) == "abc"


def test_end_tokens_come_from_the_model(model):
    assert model_eos_ids(model) == [0]
    model.generation_config.eos_token_id = [3, 4]
    assert model_eos_ids(model) == [3, 4]
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    assert model_eos_ids(model) == []


def test_an_end_token_ends_the_row(model, tokenizer, prompts):
    free = TransformersGenerator(model, tokenizer, eos_ids=[]).generate(prompts[:1], 8, [])[0]
    made = greedy_by_hand(model, tokenizer, prompts[0], 8)
    end = made[3]
    ended = TransformersGenerator(model, tokenizer, eos_ids=[end]).generate(prompts[:1], 8, [])[0]
    assert ended.finish_reason == "eos"
    assert ended.num_tokens == made.index(end) + 1
    assert free.text.startswith(ended.text)


def test_model_and_settings_come_back(model, tokenizer, prompts):
    model.train()
    model.model.layers[0].eval()
    settings = model.generation_config
    settings.repetition_penalty = 5.0
    made = TransformersGenerator(model, tokenizer).generate(prompts[:2], 12, [])
    assert model.training
    assert not model.model.layers[0].training
    assert model.generation_config is settings
    assert settings.repetition_penalty == 5.0
    model.eval()
    assert [one.num_tokens for one in made] == [
        len(greedy_by_hand(model, tokenizer, prompt, 12)) for prompt in prompts[:2]
    ]


def test_a_prompt_longer_than_the_context_raises(model, tokenizer):
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens, the context is 256"):
        TransformersGenerator(model, tokenizer).generate(["ok", "z" * 300], 4, [])


def test_a_truncating_tokenizer_does_not_truncate(model, tokenizer, prompts):
    cutting = type(tokenizer).from_str(tokenizer.to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding()
    plain = TransformersGenerator(model, tokenizer).generate(prompts, 4, [])
    assert TransformersGenerator(model, cutting).generate(prompts, 4, []) == plain
    assert cutting.truncation is not None


def test_the_budget_ends_at_the_context(model, tokenizer):
    long = "z" * (256 - 3)
    assert len(tokenizer.encode(long).ids) == 253
    made = TransformersGenerator(model, tokenizer, eos_ids=[]).generate([long, "z"], 10, [])
    assert [one.num_tokens for one in made] == [3, 10]
    assert {one.finish_reason for one in made} == {"length"}


def test_nothing_in_nothing_out(model, tokenizer):
    assert TransformersGenerator(model, tokenizer).generate([], 4, ["x"]) == []
    with pytest.raises(DataError, match="prompt 0 is empty"):
        TransformersGenerator(model, tokenizer).generate([""], 4, [])


def test_fake_generator():
    fake = FakeGenerator({"a": "one\ndef two", "b": "three"})
    made = fake.generate(["b", "a"], 100, ["\ndef "])
    assert made == [Generation("three", 5, "eos"), Generation("one", 3, "stop")]
    assert fake.prompts == ["b", "a"]
    assert FakeGenerator(["long"]).generate(["a"], 2, []) == [Generation("lo", 2, "length")]
