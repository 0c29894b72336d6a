"""Requests and batches without a model: order, limits, stop strings, the fake."""

import random

import pytest

from flab.errors import DataError, OptionError
from flab.models.engines.protocol import (
    Decoding,
    FakeGenerator,
    Generation,
    Request,
    batches,
    cut_at_stop,
    decode_after,
    encode_requests,
    finish_rows,
    generate_all,
)


def ask(*prompts, stop=()):
    return [Request(prompt, stop) for prompt in prompts]


def test_the_earliest_stop_wins():
    assert cut_at_stop("a\nclass B\ndef c", ["\ndef ", "\nclass "]) == "a"
    assert cut_at_stop("abc", ["\n"]) == "abc"
    assert cut_at_stop("abc", []) == "abc"


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens`"),
        ({"temperature": -0.1}, "`temperature`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"temperature": float("inf")}, "`temperature`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"top_p": 1.1}, "`top_p`"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_decoding_outside_its_limits_names_the_flag(setting, flag):
    with pytest.raises(OptionError, match=f"^{flag}: got .*, allowed .*") as caught:
        Decoding(**setting)
    assert "\n" not in str(caught.value)


def test_batches_are_of_like_length_and_hold_each_request_once():
    rng = random.Random(1)
    requests = ask(*("x" * rng.randint(1, 50) for _ in range(23)))
    found = batches(requests, Decoding(batch_size=5))
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 3]
    lengths = [len(requests[index].prompt) for batch in found for index in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(index for batch in found for index in batch) == list(range(23))
    assert found == batches(list(requests), Decoding(batch_size=5, max_new_tokens=9))
    assert batches([], Decoding()) == []


def test_generate_all_keeps_the_order_of_the_requests():
    requests = ask("a", "bbb", "cc", "dddd", "e")
    fake = FakeGenerator(lambda request: request.prompt.upper())
    made = generate_all(fake, requests, Decoding(batch_size=2))
    assert [one.text for one in made] == ["A", "BBB", "CC", "DDDD", "E"]
    assert fake.prompts == ["dddd", "bbb", "cc", "a", "e"]


def test_the_fake_takes_a_mapping_a_sequence_or_a_function():
    fake = FakeGenerator({"a": "one\ndef two", "b": "three"})
    made = fake.generate(ask("b", "a", stop=("\ndef ",)), Decoding())
    assert made == [Generation("three", 5, "eos"), Generation("one", 3, "stop")]
    assert fake.prompts == ["b", "a"]
    row = FakeGenerator(["first", "second"])
    assert row.generate(ask("x"), Decoding())[0].text == "first"
    assert row.generate(ask("x"), Decoding(max_new_tokens=2)) == [Generation("se", 2, "length")]
    with pytest.raises(AssertionError, match="one answer for each request"):
        row.generate(ask("x"), Decoding())


def test_each_request_has_stop_strings_of_its_own():
    fake = FakeGenerator(["ab", "ab"])
    made = fake.generate([Request("x", ("a",)), Request("y", ("b",))], Decoding())
    assert [one.text for one in made] == ["", "a"]


def test_prompts_are_cut_only_where_the_request_says_so(tokenizer):
    cut, whole = encode_requests(tokenizer, [Request("zzzz", (), 0, 2), Request("zzzz", ())], 9, context=8)
    assert (len(cut.ids), cut.budget) == (2, 6)
    assert (len(whole.ids), whole.budget) == (4, 4)
    assert whole.ids[:2] == cut.ids
    with pytest.raises(DataError, match=r"'zzzz.* has 8 tokens, but the context is 8; flab does not cut prompts"):
        encode_requests(tokenizer, ask("z" * 8), 9, context=8)
    with pytest.raises(DataError, match="'' is empty"):
        encode_requests(tokenizer, ask("a", ""), 9, context=None)


def test_leading_indentation_survives_a_decoder_that_strips_it():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "▁", "▁a", "▁b", "é"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert tokenizer.decode([1, 3]) == " b"
    assert decode_after(tokenizer, [[2], [2, 2]], [[1, 3], [3]]) == ["  b", " b"]


def test_rows_are_finished_at_what_ended_them(tokenizer):
    def finish(text, stop, eos=(), budget=50):
        row = encode_requests(tokenizer, [Request("x", stop)], budget, None)
        ids = tokenizer.encode(text).ids
        return finish_rows(tokenizer, row, [[*ids, *eos]], [0])[0], len(ids)

    made, count = finish("ab\ndef ", ("\ndef ", "q"))
    assert made == Generation("ab", count, "stop")
    made, count = finish("ab", (), eos=[0, 7])
    assert made == Generation("ab", count + 1, "eos")
    made, count = finish("ab", (), budget=len(tokenizer.encode("ab").ids))
    assert made == Generation("ab", count, "length")
