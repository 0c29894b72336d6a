"""Draw the three kinds of charts: lines over a number, bars with whiskers, and groups of rates with whiskers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flab.runs.report.svg import DRAWN, SIZE, draw
from flab.runs.report.words import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import BboxBase

Json = Mapping[str, Any]

WIDTH = 440
STYLES = {  # colour, marker, line; series can be told apart without colour too
    "ink": (DRAWN["ink"], "D", ":"),
    "muted": (DRAWN["muted"], "s", "--"),
    "accent": (DRAWN["accent"], "o", "-"),
    "second": (DRAWN["second"], "^", "-"),
    "faint": (DRAWN["faint"], ".", "-"),
}
LONGEST = 26  # the longest label in characters


def drawing(kind: str, name: str, label: str, data: Json) -> str:
    """Return the ``<svg>`` of one chart."""
    height, paint = KINDS[kind]
    return draw(name, label, WIDTH, height(data), lambda figure: paint(figure, data))


def clipped(text: str) -> str:
    """Shorten a label if it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _whisker(axes: Axes, x: float, y: float, low: float | None, high: float | None, colour: str, across: bool) -> None:
    if low is None or high is None:
        return
    middle = x if across else y
    error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
    along, other = (error, None) if across else (None, error)
    axes.errorbar(
        [x], [y], xerr=along, yerr=other, fmt="none", ecolor=colour, elinewidth=1.4, capsize=3.5, capthick=1.4, zorder=2
    )


# --- lines ---


def _lines(figure: Figure, data: Json) -> None:
    """Draw series of points, with or without lines between them, whiskers and labels."""
    axes = figure.add_subplot()
    data = _with_numbers(data)
    for rule in data.get("rules", []):
        axes.axhline(rule, color=DRAWN["muted"], linewidth=0.9, dashes=(2, 3), zorder=1)
    notes = [note for series in data["series"] if series["points"] for note in _series(axes, series)]
    _scales(axes, data)
    axes.set_xlabel(data["x"])
    axes.set_ylabel(data["y"])
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    if sum(bool(series["label"]) and bool(series["points"]) for series in data["series"]) > 1:
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.8, borderaxespad=0.0, columnspacing=1.6)
    _untangle(figure, notes)


def _with_numbers(data: Json) -> dict[str, Any]:
    """Return the series without the points that lack a number."""
    kept = [one | {"points": [p for p in one["points"] if p["y"] is not None]} for one in map(dict, data["series"])]
    return {**data, "series": kept}


def _series(axes: Axes, series: Json) -> list[Annotation]:
    """Draw one series. Return the labels of its points."""
    notes = []
    colour, marker, dash = STYLES[series["style"]]
    points = series["points"]
    shown = marker if series.get("marks", True) else ""
    axes.plot([p["x"] for p in points], [p["y"] for p in points], color=colour, marker=shown, markersize=6.5,
              linestyle=dash if series["line"] else "", linewidth=1.8, label=clipped(series["label"]) or "_", zorder=3,
              clip_on=False, markeredgewidth=0)  # fmt: skip
    for point in points:
        _whisker(axes, point["x"], point["y"], point.get("low"), point.get("high"), colour, across=False)
        if point.get("text"):
            notes.append(axes.annotate(
                clipped(point["text"]), (point["x"], point["y"]), xytext=(-5, 5) if series["line"] else (0, 8),
                ha="right" if series["line"] else "center", va="bottom", textcoords="offset points", color=colour,
                fontsize=SIZE - 1,
            ))  # fmt: skip
    return notes


def _untangle(figure: Figure, notes: Sequence[Annotation]) -> None:
    """Move labels that cover others. Leave a label out if it finds no place, because the table has its number.

    The last series is the most important one (the chosen split), so its labels are placed first.
    """
    # The size of a label is known only after the layout.
    figure.draw_without_rendering()
    taken: list[BboxBase] = []
    for note in reversed(notes):
        x, y = note.get_position()
        for offset in ((x, y), (x, -y - SIZE), (x, y + SIZE + 2), (x, -y - 2 * SIZE - 2)):
            note.set_position(offset)
            box = note.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            note.remove()


def _scales(axes: Axes, data: Json) -> None:
    """Set the limits of the axes, the ticks and their labels."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    points = [point for series in data["series"] for point in series["points"]]
    xs = [point["x"] for point in points]
    tops = [max(value for value in (point["y"], point.get("high")) if value is not None) for point in points]
    axes.margins(x=0.08)
    if tops and data.get("share_y"):
        lows = [value for point in points for value in (point["y"], point.get("low")) if value is not None]
        # The axis begins just below the lowest whisker, rounded down to a tenth. On an axis from zero the curves
        # would lie on one line.
        axes.set_ylim(max(0.0, math.floor(10 * min(lows) - 0.5) / 10), max(1.0, *tops) + 0.05)
    elif tops:
        axes.set_ylim(0, max(tops) * 1.15 or 1.0)
    if data.get("percent_x"):
        axes.set_xlim(0, min(1.0, max(xs, default=0.5) * 1.25))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
    if data.get("whole_x"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(min(xs, default=0) - 0.6, max(xs, default=1) + 0.6)
    if data.get("log_x"):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(xs))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value, 10))))


# --- bars ---


def _bars(figure: Figure, data: Json) -> None:
    """Draw horizontal bars from zero, with the value as text after each."""
    axes = figure.add_subplot()
    rows = data["rows"]
    tops = [max(value for value in (row["value"], row["high"], 0.0) if value is not None) for row in rows]
    largest = max(tops, default=0.0) or 1.0
    for place, (row, top) in enumerate(zip(rows, tops, strict=True)):
        colour = STYLES[row["style"]][0]
        if row["value"] is not None:
            axes.barh(place, row["value"], height=0.56, color=colour, zorder=2)
            _whisker(axes, row["value"], place, row["low"], row["high"], DRAWN["ink"], across=True)
        axes.annotate(clipped(row["text"]), (top, place), xytext=(8, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, largest * 1.38)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _names(axes, [clipped(row["label"]) for row in rows])


def _names(axes: Axes, names: list[str]) -> None:
    """Write the names on the left and hide the other axes."""
    axes.set_yticks(range(len(names)), labels=names)
    axes.tick_params(axis="y", length=0, labelcolor=DRAWN["ink"])
    axes.set_xticks([])
    axes.spines[["bottom"]].set_visible(False)


# --- forest ---


def _forest(figure: Figure, data: Json) -> None:
    """Draw points with whiskers on one scale, in groups that each have a title."""
    axes = figure.add_subplot()
    place = 0.0
    ticks = []
    last = None
    if data.get("rule") is not None:
        axes.axvline(data["rule"], color=DRAWN["muted"], linewidth=0.9, dashes=(2, 3), zorder=1)
    for row in data["rows"]:
        if row["group"] != last:
            axes.annotate(clipped(row["group"]), (0, place), xycoords=("axes fraction", "data"), va="center",
                          fontweight="bold", fontsize=SIZE, xytext=(4, 0), textcoords="offset points")  # fmt: skip
            place = place + 1
            last = row["group"]
        colour, marker, _ = STYLES[row["style"]]
        axes.plot([row["value"]], [place], marker=marker, color=colour, markersize=7.5, markeredgewidth=0, zorder=3)
        _whisker(axes, row["value"], place, row["low"], row["high"], colour, across=True)
        axes.annotate(row["text"], (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0), va="center",
                      textcoords="offset points", annotation_clip=False, color=DRAWN["muted"])  # fmt: skip
        ticks.append((place, clipped(row["label"])))
        place += 1
    _forest_axes(axes, data, ticks, place)


def _forest_axes(axes: Axes, data: Json, ticks: list[tuple[float, str]], end: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    margin = 0.04 * (data["high"] - data["low"])
    axes.set_xlim(data["low"] - margin, data["high"] + margin)
    axes.set_ylim(end - 0.4, -0.6)
    axes.set_yticks([place for place, _ in ticks], labels=[name for _, name in ticks])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left"]].set_visible(False)


def _forest_height(data: Json) -> float:
    groups = len({row["group"] for row in data["rows"]})
    return 44 + 21 * (len(data["rows"]) + groups)


KINDS: dict[str, tuple[Callable[[Json], float], Callable[[Figure, Json], None]]] = {
    "lines": (lambda data: 272, _lines),
    "bars": (lambda data: 16 + 30 * math.ceil(len(data["rows"])), _bars),
    "forest": (_forest_height, _forest),
}
