"""How a model is measured: checked when made, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flab.errors import OptionError


@dataclass(frozen=True)
class Measuring:
    """Lengths, repetitions and limits; the same for both models.

    Attributes:
        prompt_tokens, new_tokens: of every timed answer; ends of text are ignored, so that the work is the same.
        rounds: how often each model is timed, in turn with the other, after one answer that warms up.
        max_batch: throughput is measured at 1, 2, 4, ... answers at once, until it grows no more or this is reached.
        window_seconds: least time over which energy is metered.
        text: a file or folder whose tokens per character are counted; None is library code that no calibration reads.
        estimate: let codecarbon estimate energy where no sensor is.
        grid: grams of CO2 per kWh, or a country's three-letter code; None gives no CO2.
    """

    prompt_tokens: int = 128
    new_tokens: int = 64
    rounds: int = 5
    max_batch: int = 64
    window_seconds: float = 10.0
    text: Path | None = None
    estimate: bool = False
    grid: str | None = None

    def __post_init__(self) -> None:
        least = {"prompt_tokens": 1, "new_tokens": 2, "rounds": 1, "max_batch": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise OptionError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, allowed {low} or more.")
        if not 0 < self.window_seconds <= 3600:
            raise OptionError(f"--window-seconds: got {self.window_seconds:g}, allowed more than 0, at most 3600.")


def check_context(config: Any, wanted: int) -> None:
    """OptionError where prompt and answer do not fit the model of this config."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest and wanted > longest:
        raise OptionError(
            f"prompt and answer are {wanted} tokens, the model reads {longest}: lower --prompt-tokens or --new-tokens."
        )
