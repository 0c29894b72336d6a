"""The settings of a measurement, and the carbon intensity of its power grid, checked when made. No torch, no network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.models.options import setting


@dataclass(frozen=True)
class Measuring:
    """Lengths, repetitions and limits, the same for both models."""

    prompt_tokens: int = setting(128, "Number of tokens of every prompt.", expert=True)
    new_tokens: int = setting(64, "Number of tokens of every answer. End tokens do not stop it.", expert=True)
    rounds: int = setting(5, "Number of timings of each model, after one for warm-up. One alone shows no difference.")
    max_batch: int = setting(
        64,
        "Largest batch for throughput. Batches of 1, 2, 4, ... are tried until throughput stops growing.",
        expert=True,
    )
    window_seconds: float = setting(10.0, "Minimum number of seconds over which to meter energy.", expert=True)
    text: Path | None = setting(
        None, "Code whose tokens per character to count. Default: library code that no calibration reads.", expert=True
    )
    estimate: bool = setting(False, "Let codecarbon estimate the energy if no power sensor can be read.")
    grid: str | None = setting(
        None, "Grams of CO2 per kWh, or a country's code such as FRA or USA. Default: no CO2 figure."
    )

    def __post_init__(self) -> None:
        least = {"prompt_tokens": 1, "new_tokens": 2, "rounds": 1, "max_batch": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise OptionError(f"`{name}`: got {getattr(self, name)}, allowed {low} or more.")
        if not 0 < self.window_seconds <= 3600:
            raise OptionError(f"`window_seconds`: got {self.window_seconds:g}, allowed more than 0, at most 3600.")


def check_context(config: Any, wanted: int) -> None:
    """Raise OptionError if prompt and answer do not fit the model of this config."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest and wanted > longest:
        raise OptionError(
            f"prompt and answer take {wanted} tokens, but the model reads at most {longest}: lower `prompt_tokens` or "
            "`new_tokens`."
        )


CODECARBON = "pip install codecarbon"


def carbon_intensity(grid: str) -> dict[str, Any]:
    """Return ``{grams_per_kwh, source}`` for a number or a country's three-letter code.

    Raises:
        OptionError: it is neither, or the table (Our World in Data, as codecarbon ships it) lacks the country.
    """
    try:
        given = float(grid)
    except ValueError:
        return _of_country(grid.strip().upper())
    if not (math.isfinite(given) and given >= 0):
        raise OptionError(f"`grid`: got {grid}, allowed 0 or more grams of CO2 per kWh.")
    return {"grams_per_kwh": given, "source": "given by the user"}


def _of_country(code: str) -> dict[str, Any]:
    try:
        from codecarbon.input import DataSource
    except ImportError:
        raise OptionError(
            f"`grid` {code}: the table of countries needs codecarbon ({CODECARBON}), or give g/kWh."
        ) from None
    row = DataSource().get_global_energy_mix_data().get(code)
    if row is None:
        raise OptionError(f"`grid`: got {code}, allowed a three-letter country code (FRA, DEU, USA, ...) or g/kWh.")
    return {
        "grams_per_kwh": float(row["carbon_intensity"]),
        "source": f"mean of {row['country_name']}, {row['year']} (Our World in Data, by codecarbon)",
    }
