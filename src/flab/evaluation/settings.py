"""How every task of a run is asked and answered: :class:`Settings`, frozen and checked when made. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from flab.errors import OptionError
from flab.evaluation.prompts import PRESETS
from flab.models.engines.protocol import Decoding
from flab.models.options import setting


@dataclass(frozen=True)
class Settings:
    """How every task of a run is asked and answered. Models that are compared need the same settings."""

    preset: str = setting("completion", f"How to ask: {', '.join(PRESETS)}.")
    samples: int = setting(1, "Answers per problem.", expert=True)
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", expert=True)
    top_p: float = setting(1.0, "Sample from the most likely tokens with this total probability.", expert=True)
    seed: int = setting(0, "Seed of samples and perturbations.", expert=True)
    max_new_tokens: int = setting(256, "Maximum new tokens per answer.")
    batch_size: int = setting(64, "Number of prompts that are answered together.")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise OptionError(f"`preset`: got {self.preset}, allowed {', '.join(PRESETS)}.")
        if self.samples < 1:
            raise OptionError(f"`samples`: got {self.samples}, allowed 1 or more.")
        if self.samples > 1 and self.temperature == 0:
            raise OptionError(
                f"`samples` {self.samples}: at `temperature` 0 all samples are equal; give a temperature, or 1 sample."
            )
        assert self.decoding

    @property
    def decoding(self) -> Decoding:
        """The part of the settings that generators use."""
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)
