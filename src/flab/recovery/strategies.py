"""Strategies that choose the target of training, each a function of the known answers.

``verified-self`` is the paper's: the original's own answer if it is right, else the data set's if that is right, else none.
If nothing can verify an answer, ``untested`` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flab.errors import OptionError
from flab.models.engines.protocol import Decoding
from flab.models.options import setting

# The kinds of rows that a mix can name. Plain text has a separate share.
KINDS = ("code", "cot", "output", "chat", "instruction", "own")
UNTESTED = ("reference", "self", "drop")
# The number of the greedy answer; later tries are sampled.
GREEDY = 0


@dataclass(frozen=True)
class Answer:
    """One answer to an instruction: its source, and whether it is right (None if nothing can verify it)."""

    source: str  # "self" or "reference"
    text: str
    right: bool | None


@dataclass(frozen=True)
class Known:
    """All answers to one instruction: those of the original in the order of the tries, and the data set's."""

    own: Sequence[Answer]
    reference: Answer | None
    is_testable: bool
    untested: str = "reference"

    def first_right(self) -> list[Answer]:
        """Return the original's first right answer."""
        return [answer for answer in self.own if answer.right][:1]

    def given(self) -> list[Answer]:
        """Return the reference, unless its tests fail."""
        return [self.reference] if self.reference is not None and self.reference.right is not False else []

    def unverifiable(self) -> list[Answer]:
        """Return the answers that ``untested`` chooses for an instruction that nothing can verify."""
        if self.untested == "drop":
            return []
        return list(self.own[:1]) if self.untested == "self" else self.given()


def verified_self(known: Known) -> list[Answer]:
    """Return the original's right answer, else the right reference."""
    return (known.first_right() or known.given()) if known.is_testable else known.unverifiable()


def mixed(known: Known) -> list[Answer]:
    """Return both the original's right answer and the right reference."""
    return [*known.first_right(), *known.given()] if known.is_testable else known.unverifiable()


@dataclass(frozen=True)
class Strategy:
    """How to choose, and whether that needs the original's answers, and further tries if the first is wrong."""

    choose: Callable[[Known], list[Answer]]
    asks: bool
    tries: bool


STRATEGIES: dict[str, Strategy] = {
    "verified-self": Strategy(verified_self, asks=True, tries=True),
    # The data set's answer, unless it fails its tests; or the original's greedy answer, right or wrong.
    "reference": Strategy(Known.given, asks=False, tries=False),
    "self": Strategy(lambda known: list(known.own[:1]), asks=True, tries=False),
    "mixed": Strategy(mixed, asks=True, tries=True),
}


@dataclass(frozen=True)
class Making:
    """How a training file is made."""

    strategy: str = setting("verified-self", f"Whose answers to train on: {', '.join(STRATEGIES)}.")
    untested: str = setting(
        "reference", f"Target for rows that cannot be verified: {', '.join(UNTESTED)}.", expert=True
    )
    tries: int = setting(4, "Number of answers to sample if the greedy answer is wrong.", expert=True)
    temperature: float = setting(0.8, "Sampling temperature of those answers.", expert=True)
    top_p: float = setting(0.95, "Sample from the most likely tokens with this total probability.", expert=True)
    max_new_tokens: int = setting(512, "Maximum new tokens per answer; truncated answers are discarded.")
    batch_size: int = setting(64, "Number of prompts to answer together.")
    mix: tuple[tuple[str, float], ...] = setting(
        (),
        "Relative share of a kind of rows, such as code=2. Kinds that are not named are dropped. Repeatable.",
        expert=True,
    )
    text_share: float = setting(0.3, "Fraction of the file's characters to fill with plain text.", expert=True)
    own_texts: int = setting(0, "Number of texts that the model writes freely, without verification.")
    seed: int = setting(0, "Seed of every random choice.", expert=True)

    def __post_init__(self) -> None:
        for flag, value, allowed in (
            ("strategy", self.strategy, tuple(STRATEGIES)),
            ("untested", self.untested, UNTESTED),
        ):
            if value not in allowed:
                raise OptionError(f"`{flag}`: got {value!r}, allowed {', '.join(allowed)}.")
        if self.tries < 0:
            raise OptionError(f"`tries`: got {self.tries}, allowed 0 or more.")
        if self.own_texts < 0:
            raise OptionError(f"`own_texts`: got {self.own_texts}, allowed 0 or more.")
        if not self.temperature > 0:
            raise OptionError(
                f"`temperature`: got {self.temperature:g}, allowed more than 0: the first answer is greedy anyway."
            )
        if not 0 < self.text_share < 1:
            raise OptionError(f"`text_share`: got {self.text_share:g}, allowed a share, more than 0 and less than 1.")
        for kind, weight in self.mix:
            if kind not in KINDS or not 0 < weight < float("inf"):
                raise OptionError(f"`mix`: got {kind}={weight:g}, allowed {', '.join(KINDS)} with numbers above 0.")
        if len(dict(self.mix)) < len(self.mix):
            raise OptionError("`mix`: a kind is named twice; give each one number.")
        assert self.decoding(GREEDY) != self.decoding(GREEDY + 1), "the drawn answers are the greedy ones"

    def decoding(self, sample: int) -> Decoding:
        """Return the decoding of an answer: greedy for the first, sampled for the others."""
        if sample == GREEDY:
            return Decoding(self.max_new_tokens, 0.0, 1.0, self.batch_size)
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)
