"""Tokens, types, merges, scores and ids against the tokenizer that they were read from."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from flab.errors import OptionError, UnsupportedModelError
from flab.models.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNMERGED,
    UNUSED,
    USER_DEFINED,
    read_vocabulary,
)
from support import pico, sentencepiece

BASE = pico.tokenizer().get_vocab_size()
SIZE = BASE + 4


@pytest.fixture
def byte_level(tmp_path):
    """The pico byte-level tokenizer's folder, with infill tokens added."""
    pico.write_tokenizer(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for place, name in enumerate(("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "plain"), BASE):
        token = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": name != "plain",
        }
        data["added_tokens"].append({"id": place, "content": name, **token})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    return tmp_path


BYTES = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}


def edit(folder, **changes):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_byte_level_tokens_types_and_merges(byte_level):
    data = json.loads((byte_level / "tokenizer.json").read_text())
    made = read_vocabulary(byte_level, SIZE + 6)
    assert (made.model, made.pre) == ("gpt2", "qwen2")
    assert len(made.tokens) == len(made.types) == SIZE + 6
    assert all(made.tokens[index] == token for token, index in data["model"]["vocab"].items())
    assert made.merges == [" ".join(pair) for pair in data["model"]["merges"]]
    assert made.types[0] == NORMAL
    kinds = [made.types[index] for index in (BASE - 3, SIZE - 2, SIZE - 1, SIZE, SIZE + 5)]
    assert kinds == [CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED]
    assert made.tokens[SIZE] == f"[PAD{SIZE}]"
    assert not made.scores
    assert not made.add_bos


def test_special_and_infill_ids_are_found_by_name(byte_level):
    ids = read_vocabulary(byte_level, SIZE).ids
    assert (ids["fim_pre"], ids["fim_suf"], ids["fim_mid"]) == (BASE, BASE + 1, BASE + 2)
    assert (ids["pad"], ids["eos"], ids["eot"]) == (BASE - 3, BASE - 1, BASE - 1)
    assert "bos" not in ids


def test_a_name_given_by_the_user_wins_and_a_recorded_one_serves_an_unknown_rule(byte_level):
    assert read_vocabulary(byte_level, SIZE, pre="tekken").pre == "tekken"
    edit(byte_level, pre_tokenizer={**BYTES, "add_prefix_space": True})
    assert read_vocabulary(byte_level, SIZE, recorded="falcon").pre == "falcon"
    with pytest.raises(OptionError, match=r"`pre`"):
        read_vocabulary(byte_level, SIZE)


def test_merges_written_as_text_are_read_too(byte_level):
    data = json.loads((byte_level / "tokenizer.json").read_text())
    as_pairs = read_vocabulary(byte_level, SIZE).merges
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    (byte_level / "tokenizer.json").write_text(json.dumps(data))
    assert read_vocabulary(byte_level, SIZE).merges == as_pairs


def test_sentencepiece_scores_follow_the_merges(tmp_path):
    folder = sentencepiece.build(tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    made = read_vocabulary(folder, len(data["model"]["vocab"]))
    assert (made.model, made.pre, made.add_space_prefix, made.add_bos) == ("llama", "default", True, True)
    assert [made.types[index] for index in (0, 1, 3, 258)] == [UNKNOWN, CONTROL, BYTE, BYTE]
    first, last = ("".join(data["model"]["merges"][place]) for place in (0, -1))
    places = data["model"]["vocab"]
    assert made.scores[places[first]] == 0.0
    assert made.scores[places[last]] < made.scores[places[first]]
    assert made.scores[3] == UNMERGED
    assert (made.ids["bos"], made.ids["eos"], made.ids["unk"]) == (1, 2, 0)
    assert made.warnings == []


def test_merges_that_scores_cannot_express_are_warned_of(tmp_path):
    folder = sentencepiece.build(tmp_path)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    made = Counter("".join(pair) for pair in data["model"]["merges"])
    several = next(pair for pair in data["model"]["merges"] if made["".join(pair)] > 1)
    data["model"]["merges"].remove(several)
    file.write_text(json.dumps(data))
    (warning,) = read_vocabulary(folder, len(data["model"]["vocab"])).warnings
    assert warning.startswith("1 pairs of tokens")


def test_other_kinds_are_refused(byte_level):
    edit(byte_level, model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}, added_tokens=[])
    with pytest.raises(UnsupportedModelError, match="Unigram"):
        read_vocabulary(byte_level, 1)
