"""Format numbers for people, and make foreign text safe to display by showing control and bidi characters.

The texts here are not markup. The writers of HTML and Markdown escape them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flab.footprint.figures import Ratio

# A figure has value, unit, low, high, rounds, method and reason, as in measure.json.
Figure = Mapping[str, Any]

NONE = "–"
SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
DURATIONS = (
    (7200, 3600.0, "h"),
    (120, 60.0, "min"),
    (1, 1.0, "s"),
    (1e-3, 1e-3, "ms"),
    (1e-9, 1e-6, "µs"),
)  # the smallest value that gets the prefix, and the size of the prefixed unit
SCALED_UNITS = {"B": "B", "bytes": "B", "byte": "B", "FLOP": "FLOP", "FLOPs": "FLOP", "flops": "FLOP"}
# The Unicode categories of characters that have no visible shape.
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def count(value: float | None) -> str:
    """Return a whole number with separators: ``4,060,160``."""
    return NONE if value is None else f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage, ``40.3 %``, with a true minus sign."""
    return NONE if share is None else f"{100 * share:.{digits}f} %".replace("-", "−")


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with three significant digits. Very small and very large numbers get an exponent."""
    if value is None:
        return NONE
    if float(value).is_integer() and abs(value) < 1e15:
        return count(value)
    size = abs(rounded(value, digits))  # 999.6 is 1,000, not 1e+03
    if size < 1e-4 or size >= 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.0f}" if size >= 10**digits else f"{value:.{digits}g}"


def rounded(value: float, digits: int = 3) -> float:
    """Round a value to a number of significant digits."""
    return float(f"{value:.{digits - 1}e}")


def quantity(value: float | None, unit: str) -> str:
    """Return a number with its unit, scaled if the unit has prefixes: ``4.86 MB``, ``12.3 ms``, ``1.60 ×``."""
    if value is None:
        return NONE
    if unit == "x":
        return f"{value:.2f} ×"
    scale, shown = scaled(value, unit)
    return f"{number(value / scale)} {shown}".strip()


def scaled(value: float, unit: str) -> tuple[float, str]:
    """Return the divisor and the prefixed unit with which the number is easy to read."""
    value = rounded(value)  # the value as shown, so that 0.9997 s becomes 1 s and not 1,000 ms
    head, slash, rest = unit.partition("/")
    if unit == "s":
        return next(((size, name) for least, size, name in DURATIONS if abs(value) >= least), (1.0, "s"))
    if head in SCALED_UNITS:
        size, prefix = next(((size, prefix) for size, prefix in SCALES if abs(value) >= size), (1.0, ""))
        return size, f"{prefix}{SCALED_UNITS[head]}{slash}{rest}"
    return 1.0, unit


def figure(value: Figure | None) -> str:
    """Return a figure with its spread in the same unit, ``12.3 ms (11.9 to 12.8)``, or a dash if it has no value."""
    if value is None or value.get("value") is None:
        return NONE
    unit = value.get("unit") or ""
    low = value.get("low")
    high = value.get("high")
    shown = quantity(value["value"], unit)
    if low is None or high is None or low == high:
        return shown
    scale, _ = scaled(value["value"], unit)
    return f"{shown} ({number(low / scale)} to {number(high / scale)})"


def figures(values: Sequence[Figure | None]) -> list[str]:
    """Format the figures of one row or column in one unit and with the same number of decimals."""
    known = [value for value in values if value is not None and value.get("value") is not None]
    if not known or len({value.get("unit") for value in known}) > 1:
        return [figure(value) for value in values]
    largest = max((value["value"] for value in known), key=abs)
    smallest = min((value["value"] for value in known if value["value"]), key=abs, default=largest)
    unit = known[0].get("unit") or ""
    if unit == "x":
        return [figure(value) for value in values]
    scale, shown = scaled(largest, unit)
    # Enough decimals to show three digits of the largest figure and two of the smallest.
    decimals = max(_decimals(largest / scale, 3), _decimals(smallest / scale, 2))
    if decimals > 4 or all(float(value["value"] / scale).is_integer() for value in known):
        return [figure(value) for value in values]

    def text(value: Figure | None) -> str:
        if value is None or value.get("value") is None:
            return NONE
        low = value.get("low")
        high = value.get("high")
        said = f"{value['value'] / scale:,.{decimals}f} {shown}".strip()
        if low is None or high is None or low == high:
            return said
        return f"{said} ({low / scale:,.{decimals}f} to {high / scale:,.{decimals}f})"

    return [text(value) for value in values]


def _decimals(value: float, digits: int) -> int:
    """Return the number of decimals that show so many significant digits of a value."""
    return 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(rounded(value, digits)))))


def span(found: Ratio) -> str:
    """Return the range of a ratio, ``0.91 to 1.44``."""
    return f"{found.low:.2f} to {found.high:.2f}"


def points(difference: float) -> str:
    """Return a difference of two rates in percentage points and always with a sign, ``−26.7 points``."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def method(value: Figure | None) -> str:
    """Return the method of a figure, or the reason why it has no value."""
    if value is None:
        return NONE
    if value.get("value") is None:
        return f"not measured: {value['reason']}" if value.get("reason") else NONE
    return value.get("method") or NONE


def has_value(value: Figure | None) -> bool:
    """Return whether a figure has a value."""
    return value is not None and value.get("value") is not None


def rate(value: float | None) -> str:
    """Return a score between 0 and 1."""
    return NONE if value is None else f"{value:.3f}"


def between(pair: Any, digits: int = 3) -> str:
    """Return an interval's ends, ``0.950 to 0.992``."""
    return NONE if pair is None else f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}"


def probability(value: float | None) -> str:
    """Return a p-value. A value below a thousandth is shown as ``< 0.001``."""
    if value is None:
        return NONE
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def name_of(path: str) -> str:
    """Return the last part of a path. A hub id is not changed."""
    is_path = path.startswith(("/", ".", "~")) or path.count("/") > 1 or "\\" in path
    return Path(path.replace("\\", "/")).name or path if is_path else path


def each_text(value: Any, change: Any) -> Any:
    """Return the value with ``change`` applied to all text in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(name)): each_text(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [each_text(one, change) for one in value]
    return value


def visible(text: str) -> str:
    """Return text with its control, format and bidi characters shown as symbols, so that they have no effect."""
    text = text.replace("\r\n", "\n")
    return "".join(
        _shown(char) if char not in "\n\t" and unicodedata.category(char) in HIDDEN else char for char in text
    )


def _shown(char: str) -> str:
    """Return the Unicode control picture of a classic control character, and the code point of any other."""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def without_home(text: str) -> str:
    """Return the text with the user's home folder written ``~``, because its name would reveal who ran this."""
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry for this user
        return text
    if not home.is_absolute() or str(home) == home.anchor:
        return text
    return re.sub(rf"(?<![\w./~-]){re.escape(str(home))}(?![\w.-])", "~", text)
