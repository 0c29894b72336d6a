"""The rule in a tokenizer.json against llama.cpp's names."""

from __future__ import annotations

import json

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from flab import assets
from flab.models.gguf import pretokenizers
from flab.models.gguf.pretokenizers import by_rule, name_in, name_of, steps_of
from support import pico

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*parts: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def data(pre: dict | None, ignore_merges: bool = False) -> dict:
    return {"pre_tokenizer": pre, "model": {"ignore_merges": ignore_merges}}


DEEPSEEK = sequence(
    *map(split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
    {"type": "Digits", "individual_digits": True},
    byte_level(False),
)


@pytest.mark.parametrize(
    ("pre", "ignore_merges", "name"),
    [
        (sequence(split(LLAMA3.replace("{1,3}", "")), byte_level(False)), False, "qwen2"),
        (sequence(split(LLAMA3), byte_level(False)), True, "llama-bpe"),
        (sequence(split(LLAMA3), byte_level(False)), False, "smaug-bpe"),
        (byte_level(True), False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, byte_level(True)), False, "smollm"),
        (DEEPSEEK, False, "deepseek-coder"),
    ],
)
def test_a_rule_has_its_name(pre, ignore_merges, name):
    assert by_rule(data(pre, ignore_merges)) == name


@pytest.mark.parametrize(
    "pre",
    [
        None,
        {"type": "Metaspace"},
        byte_level(False),
        sequence(split(LLAMA3), byte_level(True)),
        sequence(split(LLAMA3 + "|x"), byte_level(False)),
        sequence({**split(LLAMA3), "behavior": "Removed"}, byte_level(False)),
        sequence({"type": "Digits", "individual_digits": False}, byte_level(True)),
        {**byte_level(True), "add_prefix_space": True},
    ],
)
def test_a_rule_that_differs_in_anything_has_none(pre):
    assert by_rule(data(pre)) is None


def test_no_name_is_given_where_whole_words_are_taken_and_llama_cpp_merges_them():
    assert by_rule(data(byte_level(True), ignore_merges=True)) is None


def test_the_bundled_model_splits_like_qwen2():
    assert name_in(assets.model_path()) == "qwen2"


def test_a_known_hash_names_a_rule_that_is_not_listed(monkeypatch):
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("never seen"), "isolated")
    found = json.loads(tokenizer.to_str())
    assert name_of(tokenizer, found) is None
    import hashlib

    digest = hashlib.sha256(str(tokenizer.encode(pretokenizers.CHECK_TEXT).ids).encode()).hexdigest()
    monkeypatch.setitem(pretokenizers.HASHES, digest, "of-the-hash")
    assert name_of(tokenizer, found) == "of-the-hash"


def test_steps_of_nested_sequences_are_flat():
    assert steps_of(sequence(sequence(split("a")), byte_level(True))) == (("split", "a"), ("bytes", True))


def test_cutting_the_vocabulary_does_not_change_the_name():
    whole, cut = (json.loads(pico.tokenizer(size).to_str()) for size in (480, 400))
    assert by_rule(whole) == by_rule(cut) == "qwen2"
