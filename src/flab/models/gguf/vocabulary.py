"""A tokenizer.json as the vocabulary of a GGUF file: tokens, their types, merges or scores, special ids by name.

Two kinds of BPE are written: byte-level, which llama.cpp calls "gpt2", and SentencePiece's with byte fallback, which it calls
"llama". Ids are looked up by name, because the sizes by which converters recognise models (32016, 49152) mean nothing after
a cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flab.errors import OptionError, UnsupportedModelError
from flab.models.folder import read_if_there
from flab.models.gguf.pretokenizers import name_of

# Token types of GGUF.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6
UNMERGED = -1e9  # score of a token that no merge makes
# The names under which models know the tokens of infill prompts, and the GGUF key of each.
INFILL = {
    "fim_pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "▁<PRE>", "<PRE>", "[PREFIX]"),
    "fim_suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "▁<SUF>", "<SUF>", "[SUFFIX]"),
    "fim_mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "▁<MID>", "<MID>", "[MIDDLE]"),
    "fim_pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>"),
    "fim_rep": ("<|repo_name|>", "<repo_name>", "<reponame>", "<|reponame|>"),
    "fim_sep": ("<|file_sep|>", "<file_sep>"),
}
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>", "▁<EOT>")


@dataclass
class Vocabulary:
    """A tokenizer as a GGUF file describes it."""

    model: str  # "gpt2" or "llama"
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)  # "gpt2" alone
    scores: list[float] = field(default_factory=list)  # "llama" alone
    ids: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, unk, pad, fim_pre, ...
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    warnings: list[str] = field(default_factory=list)


def read_vocabulary(folder: Path, rows: int, pre: str | None = None, recorded: str | None = None) -> Vocabulary:
    """Return the vocabulary of a model's folder, filled up to ``rows`` (those of the embedding).

    ``pre`` is the user's name of the pre-tokenizer, ``recorded`` the one that the plan names.

    Raises:
        OptionError: the pre-tokenizer has no known name.
        UnsupportedModelError: this kind of tokenizer is not supported.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kind = _kind(data)
    tokens, types = _tokens(tokenizer, data, rows)
    made = Vocabulary(kind, "default", tokens, types)
    if kind == "gpt2":
        made.pre = pre or name_of(tokenizer, data) or recorded or _unknown_rule()
        made.merges = [" ".join(pair) for pair in _merges(data)]
    else:
        made.scores = _scores(data, tokens)
        made.add_space_prefix = _adds_space(data)
        made.warnings += _unscored(data)
    made.ids = _special_ids(folder, data, tokens)
    # What the tokenizer puts around an empty text is what it puts around every text.
    marks = tokenizer.encode("").ids
    made.add_bos = made.ids.get("bos") in marks
    made.add_eos = made.ids.get("eos") in marks and len(marks) > made.add_bos
    return made


def _unknown_rule() -> str:
    raise OptionError(
        "llama.cpp's name of this tokenizer's splitting rule is not known: give the one of the original model with `pre`, "
        "e.g. qwen2 (the value of tokenizer.ggml.pre in a GGUF file of the original)."
    )


def _kind(data: Mapping[str, Any]) -> str:
    model = data["model"]
    text = json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
    if model.get("type") == "BPE" and '"ByteLevel"' in text:
        return "gpt2"
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return "llama"
    raise UnsupportedModelError(
        f"a {model.get('type')} tokenizer cannot be written as GGUF: flab writes byte-level BPE and BPE with byte fallback."
    )


def _tokens(tokenizer: Tokenizer, data: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the token and type of each row. Rows without a token get a name and are marked as unused."""
    added = {token["id"]: token for token in data["added_tokens"]}
    names = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens = [names.get(index, f"[PAD{index}]") for index in range(rows)]
    types = [_type(index, names, added, data["model"]) for index in range(rows)]
    return tokens, types


def _type(index: int, names: Mapping[int, str], added: Mapping[int, Any], model: Mapping[str, Any]) -> int:
    if index not in names:
        return UNUSED
    if names[index] == model.get("unk_token") and model.get("byte_fallback"):
        # A byte-level model may call its end of text so, but no text ever makes it.
        return UNKNOWN
    if index in added:
        return CONTROL if added[index]["special"] else USER_DEFINED
    name = names[index]
    is_byte = model.get("byte_fallback") and len(name) == 6 and name.startswith("<0x") and name.endswith(">")
    return BYTE if is_byte else NORMAL


def _merges(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the merges in order; a tokenizer.json writes them as pairs or as text."""
    for merge in data["model"]["merges"]:
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield first, second


def _scores(data: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Return a score for each token, higher for earlier merges, because llama.cpp merges by scores and not by a list."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(_merges(data)):
        rank.setdefault("".join(pair), number)
    return [float(-rank[token]) if token in rank else UNMERGED for token in tokens]


def _unscored(data: Mapping[str, Any]) -> list[str]:
    """Return a warning if a pair makes a token but is not a merge: llama.cpp merges every pair that makes a token."""
    vocabulary = data["model"]["vocab"]
    merges = set(_merges(data))
    made = {"".join(pair) for pair in merges}
    missing = sum(
        (token[:cut], token[cut:]) not in merges
        for token in made
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    )
    if not missing:
        return []
    return [
        f"{missing} pairs of tokens make a token and are not in the list of merges: llama.cpp merges them all the same, so "
        "some texts may be split otherwise. Compare with flab check --run llama.cpp."
    ]


def _adds_space(data: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer puts a space before a text."""
    parts = [part for name in ("normalizer", "pre_tokenizer") for part in _parts(data.get(name))]
    prepends = any(part["type"] == "Prepend" for part in parts)
    return prepends or any(part["type"] == "Metaspace" and part.get("prepend_scheme") != "never" for part in parts)


def _parts(value: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the members of a sequence of normalizers or pre-tokenizers, or the only one."""
    if value is None:
        return
    if value.get("type") == "Sequence":
        for part in value.get("normalizers") or value.get("pretokenizers") or ():
            yield from _parts(part)
    else:
        yield value


def _special_ids(folder: Path, data: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    """Return the ids of the special tokens, from the tokenizer's config or else the model's, and those of infill by name."""
    place = {token: index for index, token in enumerate(tokens)}
    roles = read_if_there(folder / "tokenizer_config.json")
    config = read_if_there(folder / "config.json") | read_if_there(folder / "generation_config.json")
    found: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = roles.get(f"{role}_token")
        # A special token is stored as text, or as an object with its text in ``content``.
        name = named.get("content") if isinstance(named, dict) else named
        index = place.get(name) if isinstance(name, str) else _first(config.get(f"{role}_token_id"))
        if index is not None and 0 <= index < len(tokens):
            found[role] = index
    unknown = data["model"].get("unk_token")
    if "unk" not in found and unknown in place:
        found["unk"] = place[unknown]
    ends = [place[name] for name in TURN_ENDS if name in place]
    if ends:
        found["eot"] = ends[0]
    for key, names in INFILL.items():
        known = [place[name] for name in names if name in place]
        if known:
            found[key] = known[0]
    return found


def _first(value: Any) -> int | None:
    """Return an id, or the first of a list of them."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None
