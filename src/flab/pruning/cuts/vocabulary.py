"""Vocabulary: keep what the corpus uses, closed under the tokenizer's own derivations, and cut the other rows.

With the closure, any text whose tokens are all kept is split exactly as before; only the ids change. This works for
byte-level BPE, byte-fallback BPE and Unigram ``tokenizer.json`` files. The caller decides how many tokens to keep.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from flab.errors import BudgetError
from flab.models.families import Family, embedding_of, head_of, is_tied
from flab.models.folder import read_if_there
from flab.models.tokenizer import TokenizerModel
from flab.progress import track

# Entries of a generation config that list token ids although their names do not say so.
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")
# What a chat template may put between its marks: the roles, with and without the space that BPE glues to a
# word.
_ROLES = ("system", "user", "assistant", "tool", " system", " user", " assistant", "\n", "\n\n")


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str], batch: int = 64) -> Counter[int]:
    """Return how often the original tokenizer emits each id on the texts."""
    counts: Counter[int] = Counter()
    texts = list(texts)
    for start in track(range(0, len(texts), batch), "Counting tokens"):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + batch], add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def required_tokens(folder: Path, tokenizer: Tokenizer, role_ids: Iterable[int]) -> set[int]:
    """Return the ids that stay whatever the corpus uses: symbols, added tokens, and all that the folder's files name."""
    model = TokenizerModel(tokenizer)
    # Without the alphabet some bytes could not be encoded; added tokens and roles are named in configs and templates.
    keep = model.alphabet() | set(model.added.values()) | set(role_ids)
    if model.data["model"].get("unk_id") is not None:
        keep.add(int(model.data["model"]["unk_id"]))
    for token in (model.data["model"].get("unk_token"),):
        if token in model.base:
            keep.add(model.base[token])
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        data = read_if_there(folder / name)
        keep.update(i for _, i in named_ids(data))
        keep.update(i for text in _strings(data) if (i := tokenizer.token_to_id(text)) is not None)
    # The text that the chat template writes around a message must be encoded as before.
    for literal in _template_literals(folder):
        keep.update(tokenizer.encode(literal, add_special_tokens=False).ids)
    return {i for i in keep if i in model.text_of}


def _template_literals(folder: Path) -> Iterator[str]:
    """Yield what a chat template can put around a message: its quoted strings, its plain text and the role names."""
    files = [folder / "chat_template.jinja", folder / "tokenizer_config.json"]
    text = "\n".join(f.read_text(encoding="utf-8") for f in files if f.is_file())
    if "{%" not in text and "{{" not in text:
        return
    yield from _ROLES
    for quoted in re.findall(r"'([^'\n]*)'|\"([^\"\n]*)\"", text):
        yield "".join(quoted).replace("\\n", "\n").replace("\\\\n", "\n")
    # Text outside the jinja marks is written into every chat as it is.
    yield from re.split(r"\{[%{#].*?[%}#]\}", text, flags=re.DOTALL)


def named_ids(data: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield (key, id) for every token id in a config: ``*_token_id``, lists of them, and lists of suppressed tokens."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from named_ids(value, str(name))
    elif key.endswith(("_token_id", "_token_ids")) or key in ID_LISTS:
        if isinstance(data, int) and not isinstance(data, bool):
            yield key, data
        elif isinstance(data, list):
            for item in data:
                yield from named_ids(item, key)


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)


def closed(model: TokenizerModel, ids: Iterable[int]) -> set[int]:
    """Return the ids and all pieces that the tokenizer builds them from."""
    return {piece for i in ids for piece in model.pieces(i)}


def covered_tokens(
    model: TokenizerModel, counts: Mapping[int, int], required: Iterable[int], min_count: int = 1
) -> set[int]:
    """Return the smallest closed set that segments the counted texts as before."""
    seen = (i for i, n in counts.items() if n >= min_count and i in model.text_of)
    return closed(model, {*required, *seen})


def floor_tokens(model: TokenizerModel, required: Iterable[int], size: int) -> set[int]:
    """Return the required tokens and the pieces that BPE builds them from.

    Raises:
        BudgetError: these alone are more than ``size``.
    """
    floor = closed(model, required)
    if len(floor) > size:
        raise BudgetError(
            f"`vocabulary` {size} is below the floor of {len(floor)} tokens: byte symbols, special and named tokens, "
            "and the pieces that derive them."
        )
    return floor


def choose_vocabulary(
    model: TokenizerModel, counts: Mapping[int, float], required: Iterable[int], size: int
) -> list[int]:
    """Choose a closed set of exactly ``size`` ids if possible, the most frequent first. Returns the old id of each new id.

    Ties and unseen tokens are ordered by original id. In BPE that is the order of training, which puts general pieces first.

    Raises:
        BudgetError: the required tokens alone are more than ``size``.
    """
    keep = floor_tokens(model, required, size)
    # Then by frequency. A token is added together with the pieces it still needs. If they do not fit, it is skipped, and a
    # later one that needs fewer may still fit.
    for token in sorted(model.text_of, key=lambda i: (-counts.get(i, 0), i)):
        missing = model.pieces(token) - keep
        if len(keep) + len(missing) <= size:
            keep |= missing
        if len(keep) == size:
            break
    return model.order(keep)


def cut_vocabulary(model: Any, family: Family, kept: list[int]) -> None:
    """Keep the rows ``kept`` of embedding and head, in place, and renumber every id in the configs. Tied weights stay tied."""
    embedding = embedding_of(model, family)
    head = head_of(model, family)
    if len(kept) >= embedding.num_embeddings:
        return
    tied = is_tied(model, family)  # asked before the weights are replaced
    new_of = {old: new for new, old in enumerate(kept)}
    embedding.weight = _rows(embedding.weight, kept)
    embedding.num_embeddings = head.out_features = model.config.vocab_size = len(kept)
    embedding.padding_idx = new_of.get(embedding.padding_idx) if embedding.padding_idx is not None else None
    # Tied weights have to be one parameter again, or the saved file would hold the same rows twice.
    head.weight = embedding.weight if tied else _rows(head.weight, kept)
    if head.bias is not None:
        head.bias = _rows(head.bias, kept)
    # Both the causal model and its inner model keep a copy of the size; generation reads either.
    for holder in (model, model.get_submodule(family.embedding.rpartition(".")[0])):
        if hasattr(holder, "vocab_size"):
            holder.vocab_size = len(kept)
    # Special tokens that are named by their id get the new id, or None if they are gone.
    for config in (model.config, model.generation_config):
        for key, value in config.to_dict().items():
            if any(True for _ in named_ids({key: value})):
                setattr(config, key, _renumber_ids(value, new_of))


def _renumber_ids(value: Any, new_of: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        new = [_renumber_ids(v, new_of) for v in value]
        # With an empty list of end tokens no answer would ever end. With None transformers falls back to the config.
        return [v for v in new if v is not None] or None
    return new_of.get(value) if isinstance(value, int) else value


def _rows(weight: torch.Tensor, kept: list[int]) -> nn.Parameter:
    return nn.Parameter(weight.data.index_select(0, torch.tensor(kept, device=weight.device)), requires_grad=False)
