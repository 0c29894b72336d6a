"""The training corpus: samples of the grammar and library code, packed into sequences of one length."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase

from flab.assets import train_stdlib
from reference import grammar, samples

LENGTH = 256
IGNORED = -100
# (sequences, token share of each kind): steps and code are learned early, running code in the head is not.
PHASES = (
    (25_600, {"code": 0.33, "thought": 0.12, "output": 0.40, "library": 0.15}),
    (12_800, {"code": 0.24, "thought": 0.04, "output": 0.66, "library": 0.06}),
    (12_800, {"code": 0.12, "thought": 0.02, "output": 0.82, "library": 0.04}),
)
SINGLES = 0.25  # of the drawn tasks are one operation alone
OPEN_BINS = 64
SPARE = 1.03  # a little more is made than needed: samples that do not fit a sequence are dropped
Segment = tuple[str, bool]  # text, and whether its tokens are learned
Packed = tuple[np.ndarray, np.ndarray]  # input ids, labels


def draw_training_task(rng: random.Random) -> grammar.Task:
    """A task of the train split."""
    known = grammar.compositions("train")
    size = 1 if rng.random() < SINGLES else 2
    return grammar.draw_task(rng.choice([names for names in known if len(names) == size]), rng)


def code_sample(rng: random.Random) -> list[Segment]:
    """Docstring to code; all of it is learned."""
    return [("".join(samples.code_text(draw_training_task(rng), rng)), True)]


def thought_sample(rng: random.Random) -> list[Segment]:
    """Docstring to the canonical steps; the docstring itself is learned from the code samples."""
    row = samples.cot_row(draw_training_task(rng), "", rng)
    return [(row["prompt"], False), (row["cot"], True)]


def output_sample(rng: random.Random) -> list[Segment]:
    """One function and some asserts. Random inputs teach nothing, so they are mostly not learned."""
    learn_all = rng.random() < 0.2
    segments = []
    for prompt, completion in samples.output_text(draw_training_task(rng), rng, rng.choice((1, 4, 5, 6))):
        segments += [(prompt, learn_all), (completion, True)]
    return segments


MAKERS: dict[str, Callable[[random.Random], list[Segment]]] = {
    "code": code_sample,
    "thought": thought_sample,
    "output": output_sample,
}


def build(tokenizer: PreTrainedTokenizerBase, seed: int, phases: tuple = PHASES) -> Packed:
    """The packed sequences of all phases, in the order of training."""
    parts = [_phase(tokenizer, sequences, shares, f"{seed} {i}") for i, (sequences, shares) in enumerate(phases)]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([labels for _, labels in parts])


def _phase(tokenizer: PreTrainedTokenizerBase, sequences: int, shares: dict[str, float], seed: str) -> Packed:
    """`sequences` packed sequences in random order, with the given token shares."""
    rng = random.Random(seed)
    encoded = [
        sample
        for kind, make in MAKERS.items()
        for sample in _encoded(tokenizer, make, int(sequences * LENGTH * shares[kind] * SPARE), f"{kind} {seed}")
    ]
    rng.shuffle(encoded)
    ids, labels = _pack(encoded, tokenizer.eos_token_id)
    library = library_sequences(tokenizer, int(sequences * shares["library"]), rng)
    ids, labels = np.concatenate([library, ids]), np.concatenate([library, labels])
    order = rng.sample(range(sequences), sequences)
    return ids[order], labels[order]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, make: Callable[[random.Random], list[Segment]], tokens: int, seed: str
) -> Iterator[list[tuple[int, int]]]:
    """Samples of one kind as (id, label) pairs, until `tokens` tokens are reached."""
    rng, end = random.Random(seed), tokenizer.eos_token_id
    while tokens > 0:
        drawn = [make(rng) for _ in range(500)]
        ids = iter(tokenizer([text for sample in drawn for text, _ in sample]).input_ids)
        for sample in drawn:
            pairs = [(i, i if learn else IGNORED) for _, learn in sample for i in next(ids)]
            yield [*pairs, (end, end)]
            tokens -= len(pairs) + 1


def _pack(encoded: list[list[tuple[int, int]]], end: int) -> Packed:
    """Best fit into a few open bins; a sample is never cut, and every sequence begins with a sample."""
    bins: list[list[tuple[int, int]]] = []
    full = []
    for sample in (sample for sample in encoded if len(sample) <= LENGTH):
        fitting = [row for row in bins if len(row) + len(sample) <= LENGTH]
        if fitting:
            max(fitting, key=len).extend(sample)
            continue
        if len(bins) == OPEN_BINS:
            full.append(bins.pop(max(range(OPEN_BINS), key=lambda i: len(bins[i]))))
        bins.append(list(sample))
    rows = [row + [(end, IGNORED)] * (LENGTH - len(row)) for row in full + bins]
    table = np.array(rows, dtype=np.int16)
    return table[:, :, 0], table[:, :, 1]


def library_texts() -> list[str]:
    """The training part of the running Python's standard library."""
    return [path.read_text(encoding="utf-8", errors="ignore") for path in train_stdlib()]


def library_sequences(tokenizer: PreTrainedTokenizerBase, count: int, rng: random.Random) -> np.ndarray:
    """`count` random windows of library code."""
    stream = [i for ids in tokenizer(library_texts()).input_ids for i in (*ids, tokenizer.eos_token_id)]
    starts = [rng.randrange(len(stream) - LENGTH) for _ in range(count)]
    return np.array([stream[start : start + LENGTH] for start in starts], dtype=np.int16)


def digest(packed: Packed) -> str:
    """The sha256 of the corpus: the same seed gives the same one."""
    return hashlib.sha256(packed[0].tobytes() + packed[1].tobytes()).hexdigest()
