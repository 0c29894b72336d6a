"""Tokenizers: loading the one that ``tokenizer.json`` describes, and rewriting it for the tokens that are kept.

``tokenizer.json`` is authoritative, and AutoTokenizer's result is compared with it. :mod:`flab.pruning.cuts.vocabulary`
decides which tokens are kept.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from flab.errors import CheckpointError, UnsupportedModelError
from flab.models.folder import read_if_there
from flab.models.source import check_tokenizer

# Texts on which tokenizers differ: indentation, tabs and blank lines, several scripts and an emoji, runs of spaces,
# numbers.
PROBES = (
    "def add(a, b):\n    return a + b  # sum\n",
    "for i in range(10):\n\tprint(f'{i:>3}', x[i] != None)\n\n\n",
    "Straße, naïve café, Привет, 漢字かな, العربية, हिन्दी 🚀\r\n",
    "  leading and  double   spaces, CamelCase snake_case 3.14159e-10 0xFF",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' messages and bars while loading. Errors still raise."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return a library's error message on one line. A heading includes the line below it; a quoted name loses its quotes."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    if isinstance(error, KeyError):
        return f"unknown name {lines[0]}"
    return f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def load_tokenizer(path: Path) -> tuple[Tokenizer, set[int], list[str]]:
    """Return the tokenizer of ``tokenizer.json``, the ids to which transformers gives a role, and AutoTokenizer's mistakes."""
    check_tokenizer(path)
    file = path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise CheckpointError(f"{file} is damaged ({first_line(error)}). Fetch it again.") from None
    # A tokenizer.json may hold the padding and truncation of a training run, but calibration text must be whole.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with quiet():
        try:
            auto = AutoTokenizer.from_pretrained(path)
        except Exception as error:
            return tokenizer, set(), [f"AutoTokenizer cannot load {path.name}: {first_line(error)}"]
    named = {i for i in [*auto.all_special_ids, *auto.get_added_vocab().values()] if i is not None}
    warnings = [*tokenizer_warnings(tokenizer, auto), *start_warnings(tokenizer, path / "tokenizer_config.json")]
    return tokenizer, {i for i in named if i < tokenizer.get_vocab_size()}, warnings


def tokenizer_warnings(truth: Tokenizer, auto: Any) -> list[str]:
    """Return a warning if AutoTokenizer does not split the probe texts as tokenizer.json does."""
    differ = [
        p for p in PROBES if auto.encode(p, add_special_tokens=False) != truth.encode(p, add_special_tokens=False).ids
    ]
    if not differ:
        return []
    return [
        f"AutoTokenizer builds {type(auto).__name__}, which splits {len(differ)} of {len(PROBES)} probe texts differently from "
        "tokenizer.json. flab uses tokenizer.json; load it with transformers.PreTrainedTokenizerFast.from_pretrained."
    ]


def start_warnings(truth: Tokenizer, config: Path) -> list[str]:
    """Return a warning if the config promises a BOS before every text but tokenizer.json adds none."""
    # AutoTokenizer has read the file by now, and does not keep this field for every class.
    promised = read_if_there(config).get("add_bos_token") is True
    if not promised or special_prefix(truth):
        return []
    return [
        f"{config.name} says add_bos_token, but tokenizer.json puts nothing before a text. transformers 5 and flab add no BOS; "
        "transformers 4 and servers built on it may add one. Write it into the post_processor of tokenizer.json, or set "
        "add_bos_token to false."
    ]


def special_prefix(tokenizer: Tokenizer) -> list[int]:
    """Return the ids, such as BOS, that the tokenizer itself, and so every runtime, puts before a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    starts = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
    return whole[: starts[0]] if starts else []


def record_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a record by which a changed tokenizer is found: a digest of tokens and merges, and the ids of some texts."""
    # The digest finds any token under another id and any other merge. The texts find what it does not cover: another splitting
    # rule, another normaliser, another start of a text.
    tokens = sorted((index, token) for token, index in tokenizer.get_vocab(with_added_tokens=True).items())
    merges = json.loads(tokenizer.to_str())["model"].get("merges", [])
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return {
        "sha256": hashlib.sha256(json.dumps([tokens, pairs]).encode()).hexdigest(),
        "texts": [{"text": text, "ids": tokenizer.encode(text).ids} for text in PROBES],
    }


def token_change(tokenizer: Tokenizer, record: Mapping[str, Any]) -> str | None:
    """Return how a tokenizer differs from the one that :func:`record_tokens` recorded, or None if it does not."""
    for one in record["texts"]:
        if change := text_difference(one["text"], one["ids"], tokenizer.encode(one["text"]).ids):
            return change
    same = record_tokens(tokenizer)["sha256"] == record["sha256"]
    return None if same else "its tokens or merges are not those that were written"


def text_difference(text: str, right: list[int], got: list[int]) -> str | None:
    """Describe the first place where the ids of a text differ from the right ones, or return None if they do not."""
    if got == right:
        return None
    place = next((i for i, (a, b) in enumerate(zip(right, got, strict=False)) if a != b), min(len(right), len(got)))
    return f"{text[:40]!r} is split differently from token {place} on: {got[place : place + 4]}, not {right[place : place + 4]}"


def end_of_text(model: Any, kept: list[int]) -> int | None:
    """Return the (new) id that ends an answer: the first eos of the generation config, else of the config."""
    for config in (model.generation_config, model.config):
        eos = getattr(config, "eos_token_id", None)
        eos = eos[0] if isinstance(eos, list) and eos else eos
        if isinstance(eos, int):
            return kept.index(eos) if eos in kept else None
    return None


class TokenizerModel:
    """The content of ``tokenizer.json``: tokens, merges and added tokens, all by their original ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.data: dict[str, Any] = json.loads(tokenizer.to_str())
        model = self.data["model"]
        self.kind = model.get("type", "BPE")
        if self.kind not in ("BPE", "Unigram"):
            raise UnsupportedModelError(
                f"tokenizer of type {self.kind!r}: flab prunes BPE and Unigram vocabularies. "
                "Pin `vocabulary` to the model's own size."
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise UnsupportedModelError(
                "BPE with word prefixes or suffixes is not supported: pin `vocabulary` to the model's own size."
            )
        if self.kind == "BPE":
            self.base: dict[str, int] = model["vocab"]
            # Older files write a merge as one text with a space, newer ones as a pair.
            self.merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        else:
            self.base = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
            self.merges = []
        # In reverse order, because the tokenizers library uses the first of a merge that is listed twice.
        self.ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        self.added = {token["content"]: int(token["id"]) for token in self.data.get("added_tokens") or []}
        self.text_of = {i: t for t, i in [*self.base.items(), *self.added.items()]}

    def alphabet(self) -> set[int]:
        """Return ids of the single symbols without which some byte string could not be encoded."""
        flat = json.dumps([self.data.get("pre_tokenizer"), self.data.get("decoder")])
        if '"ByteLevel"' in flat:
            symbols: Iterable[str] = pre_tokenizers.ByteLevel.alphabet()
        elif self.data["model"].get("byte_fallback"):
            symbols = [f"<0x{byte:02X}>" for byte in range(256)]
        else:
            symbols = [token for token in self.base if len(token) == 1]
        return {self.base[s] for s in symbols if s in self.base}

    def pieces(self, token_id: int) -> set[int]:
        """Return the token, and every intermediate piece from which the original merges build it."""
        token = self.text_of[token_id]
        if self.kind == "Unigram" or token in self.added or token not in self.base:
            return {token_id}
        symbols = list(token)
        found = {token_id}
        found.update(self.base[s] for s in symbols if s in self.base)
        # This is BPE on one word: it joins the pair with the lowest rank until no pair has a merge. Every token on the way
        # must stay, because the same merges must lead to this one in the pruned vocabulary.
        while True:
            pairs = [(self.ranks.get((a, b)), i) for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))]
            rank, i = min(((r, i) for r, i in pairs if r is not None), default=(None, 0))
            if rank is None:
                return found
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            found.add(self.base[symbols[i]])

    def order(self, ids: Iterable[int]) -> list[int]:
        """Return new id -> old id: base tokens by original id, then the added tokens outside the base."""
        outside = {i for t, i in self.added.items() if t not in self.base}
        return sorted(ids, key=lambda i: (i in outside, i))


def rewrite_tokenizer(model: TokenizerModel, kept: list[int]) -> dict[str, Any]:
    """Return ``tokenizer.json`` for the kept tokens, renumbered. Merges keep their order and scores their values."""
    new_of = {old: new for new, old in enumerate(kept)}
    # Copied apart from the vocabulary and the merges, which are made anew: copying those takes seconds.
    inner = dict(model.data["model"])
    data = copy.deepcopy({name: value for name, value in model.data.items() if name != "model"})
    data = {name: data.get(name, inner) for name in model.data}
    if model.kind == "BPE":
        inner["vocab"] = {t: new_of[i] for t, i in sorted(model.base.items(), key=lambda p: p[1]) if i in new_of}
        vocab = inner["vocab"]
        pairs = zip(model.merges, inner["merges"], strict=True)
        # A merge stays if both parts and the result stay. The order is their rank, so it must not change.
        inner["merges"] = [m for (a, b), m in pairs if a in vocab and b in vocab and a + b in vocab]
    else:
        inner["vocab"] = [entry for i, entry in enumerate(inner["vocab"]) if i in new_of]
        if inner.get("unk_id") is not None:
            inner["unk_id"] = new_of[inner["unk_id"]]
    for token in data.get("added_tokens") or []:
        token["id"] = new_of[token["id"]]
    data["post_processor"] = _renumber_processor(data.get("post_processor"), new_of)
    return data


def _renumber_processor(data: Any, new_of: Mapping[int, int]) -> Any:
    """Return ids inside a post-processor: template ``ids`` lists, and the (token, id) pairs of the Bert and Roberta kinds."""
    if isinstance(data, dict):
        renumbered = {k: _renumber_processor(v, new_of) for k, v in data.items()}
        if isinstance(data.get("ids"), list):
            renumbered["ids"] = [new_of[i] for i in data["ids"]]
        for key in ("sep", "cls"):
            if isinstance(data.get(key), list) and len(data[key]) == 2:
                renumbered[key] = [data[key][0], new_of[data[key][1]]]
        return renumbered
    return [_renumber_processor(v, new_of) for v in data] if isinstance(data, list) else data


def new_tokenizer(tokenizer: Tokenizer, rows: int, kept: list[int]) -> tuple[Tokenizer, dict[str, Any] | None]:
    """Return the tokenizer of the kept tokens and its JSON, or the same tokenizer and None if all ``rows`` are kept.

    ``rows`` are those of the original's embedding; ``kept`` maps each new id to the old one.

    Raises:
        CheckpointError: the tokenizers library numbers a token differently from the plan.
    """
    if len(kept) >= rows:
        return tokenizer, None
    data = rewrite_tokenizer(TokenizerModel(tokenizer), kept)
    made = Tokenizer.from_str(json.dumps(data))
    # The library numbers added tokens by its own rules. Any difference from the plan would pair tokens with wrong rows of
    # the embedding.
    wrong = [i for i, k in enumerate(kept) if tokenizer.id_to_token(k) != made.id_to_token(i)]
    if wrong:
        raise CheckpointError(
            f"the rewritten tokenizer numbers token {wrong[0]} differently from the plan: keep the whole vocabulary with "
            f"`vocabulary` {rows}, and report this tokenizer."
        )
    return made, data
