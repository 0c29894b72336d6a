"""Carbon intensity of a power grid: a number that the user gives, or a country's yearly mean. No network."""

from __future__ import annotations

import math
from typing import Any

from flab.errors import OptionError

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
