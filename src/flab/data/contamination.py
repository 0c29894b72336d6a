"""Find evaluation problems in training or calibration text, by exact and n-gram matches.

Text is compared as tokens: Unicode-folded, lower case, words (with digits and ``_``) and single symbols; white
space, the kind of quote and the kind of dash do not count. Three rules:

- *exact*: all tokens of a problem stand in one text, in a row (a problem shorter than ``n`` tokens must be the
  whole text).
- *n-gram*: a run of ``n`` tokens is in both (n = 13 as in Brown et al. 2020, appendix C), and is distinctive: at
  least ``MIN_WORDS`` of its tokens are different words, and at most ``MAX_SHARED`` problems have it. Imports,
  punctuation and a file's own phrases are in many problems and tell nothing.
- *flagged* is a problem that is exact, or that shares ``MIN_SHARE`` of its distinctive n-grams with the texts
  together. Below it are idioms: of HumanEval's problems, 5 share some with MBPP's references and none is flagged.

It finds copies but not paraphrases, and needs no model and no tokenizer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOKEN = re.compile(r"\w+|[^\w\s]")
FOLDED = str.maketrans({'"': "'", "`": "'", "‘": "'", "’": "'", "“": "'", "”": "'", "–": "-", "—": "-", "−": "-"})
MIN_WORDS = 6
MAX_SHARED = 3
MIN_SHARE = 0.2
Gram = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """A problem found in the texts: ``shared`` of its ``total`` distinctive n-grams, and the text with most of them."""

    task_id: str
    exact: bool
    shared: int
    total: int
    text_index: int

    @property
    def flagged(self) -> bool:
        """Whether the match is more than an idiom."""
        return self.exact or self.shared >= max(1.0, MIN_SHARE * self.total)


@dataclass(frozen=True)
class Overlap:
    """The compared texts and the problems found, the most shared first."""

    n: int
    num_problems: int
    num_texts: int
    matches: tuple[Match, ...]

    @property
    def flagged_ids(self) -> list[str]:
        """Problems whose scores may be too high."""
        return [match.task_id for match in self.matches if match.flagged]

    @property
    def exact_ids(self) -> list[str]:
        """Problems that stand whole in a text."""
        return [match.task_id for match in self.matches if match.exact]

    def warning(self) -> str | None:
        """Return one line for the user, or None if nothing is flagged."""
        found = self.flagged_ids
        if not found:
            return None
        ids = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        return (
            f"{len(found)} of {self.num_problems} problems share text with the data ({len(self.exact_ids)} whole, "
            f"the others a fifth or more of their runs of {self.n} tokens): {ids}; their scores may be too high"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``json.dump``."""
        return asdict(self) | {"flagged": self.flagged_ids, "exact": self.exact_ids}


def tokens_of(text: str) -> list[str]:
    """Return words and single symbols, folded."""
    return TOKEN.findall(unicodedata.normalize("NFKC", text).casefold().translate(FOLDED))


def overlaps(problems: Sequence[tuple[str, str]], texts: Iterable[str], n: int = 13) -> Overlap:
    """Look for the problems (id, prompt with reference) in the texts, which are read once, in order."""
    index = _Index(problems, n)
    for number, text in enumerate(texts):
        index.read(number, text)
    return Overlap(n, len(problems), index.num_texts, tuple(index.matches()))


def holding(problems: Sequence[tuple[str, str]], texts: Sequence[str], n: int = 13) -> dict[int, list[str]]:
    """Find the problems that a single text contains whole, or of which it holds ``MIN_SHARE`` of the n-grams."""
    if not problems:
        return {}
    index = _Index(problems, n)
    found = {number: index.read(number, text) for number, text in enumerate(texts)}
    return {number: ids for number, ids in found.items() if ids}


class _Index:
    """The problems' n-grams, as tuples of word numbers, and the matches so far."""

    def __init__(self, problems: Sequence[tuple[str, str]], n: int) -> None:
        self.n = n
        self.ids = [task_id for task_id, _ in problems]
        self.num_texts = 0
        self.numbers: dict[str, int] = {}
        # Words become numbers, so that an n-gram is a tuple of small integers. Words that are in no problem become -1.
        split = [tokens_of(text) for _, text in problems]
        self.whole = [tuple(self.numbers.setdefault(token, len(self.numbers)) for token in tokens) for tokens in split]
        self.is_word = {number for token, number in self.numbers.items() if token[0].isalpha()}
        # The problems that each n-gram is in, then the n-grams that are distinctive enough to give a problem away.
        self.owners: dict[Gram, list[int]] = defaultdict(list)
        for place, tokens in enumerate(self.whole):
            for gram in set(_grams(tokens, n)):
                self.owners[gram].append(place)
        distinctive = [
            gram
            for gram, places in self.owners.items()
            if len(places) <= MAX_SHARED and len(self.is_word.intersection(gram)) >= MIN_WORDS
        ]
        self.distinctive = set(distinctive)
        self.total = Counter(place for gram in distinctive for place in self.owners[gram])
        # Problems of fewer than n tokens have no n-gram; they count as found only if they are the whole text.
        self.short: dict[Gram, list[int]] = defaultdict(list)
        for place, tokens in enumerate(self.whole):
            if 0 < len(tokens) < n:
                self.short[tokens].append(place)
        self.shared: dict[int, set[Gram]] = defaultdict(set)
        # For each problem whether a text holds it whole, the n-grams that they share, and minus the text's
        # index.
        self.best: dict[int, tuple[bool, int, int]] = {}

    def read(self, number: int, text: str) -> list[str]:
        """Look for problems in one text. Return those that this text gives away by itself."""
        self.num_texts += 1
        tokens = tuple(self.numbers.get(token, -1) for token in tokens_of(text))
        # Any shared n-gram makes a problem a candidate for a whole match; only distinctive ones are counted.
        found = {gram for gram in _grams(tokens, self.n) if gram in self.owners}
        here: dict[int, set[Gram]] = {place: set() for gram in found for place in self.owners[gram]}
        for gram in found & self.distinctive:
            for place in self.owners[gram]:
                here[place].add(gram)
        whole = {place for place in here if _contains(tokens, self.whole[place])} | set(self.short.get(tokens, []))
        for place in whole | {place for place, grams in here.items() if grams}:
            grams = here.get(place, set())
            self.shared[place] |= grams
            self.best[place] = max(self.best.get(place, (False, -1, 0)), (place in whole, len(grams), -number))
        # This text alone gives a problem away if it holds it whole or enough of its distinctive n-grams.
        given = whole | {p for p, grams in here.items() if grams and len(grams) >= MIN_SHARE * self.total[p]}
        return [self.ids[place] for place in sorted(given)]

    def matches(self) -> Iterator[Match]:
        """Yield all problems found, whole ones first, then by the share of their n-grams."""

        def order(place: int) -> tuple[bool, float, int]:
            return not self.best[place][0], -len(self.shared[place]) / max(1, self.total[place]), place

        for place in sorted(self.best, key=order):
            exact, _, index = self.best[place]
            yield Match(self.ids[place], exact, len(self.shared[place]), self.total[place], -index)


def _grams(tokens: Gram, n: int) -> Iterator[Gram]:
    """Yield the runs of ``n`` tokens without an unknown one."""
    # The place of the last word that no problem has. A run of n tokens may begin only after it.
    unknown = -1
    for end, token in enumerate(tokens):
        if token < 0:
            unknown = end
        elif end - unknown >= n:
            yield tokens[end - n + 1 : end + 1]


def _contains(tokens: Gram, part: Gram) -> bool:
    """Return whether the part stands in the tokens, in a row."""
    # As text with a space around each number, so that Python's fast substring search can do the work and 12 is
    # not found in 112.
    text, wanted = (" " + " ".join(map(str, one)) + " " for one in (tokens, part))
    return wanted in text
