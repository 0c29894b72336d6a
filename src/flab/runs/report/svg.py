"""Turn matplotlib's SVG into an element of the page: without a prolog or spare ids, and in the page's colours.

Drawings use placeholder colours, which become CSS variables here, so one drawing serves light and dark mode.
The same drawing gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {  # maps a colour in the drawing to the colour that the page shows
    "#010203": ("ink", "currentColor"),
    "#010204": ("muted", "var(--muted)"),
    "#010205": ("accent", "var(--accent)"),
    "#010206": ("second", "var(--second)"),
    "#010207": ("line", "var(--line)"),
    "#010208": ("faint", "var(--faint)"),
    "#010209": ("paper", "var(--paper)"),
}
DRAWN = {name: placeholder for placeholder, (name, _) in COLOURS.items()}
SIZE = 11  # the size of text in the drawing's units, which are pixels if the page is wide enough
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.labelsize": SIZE,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "legend.fontsize": SIZE,
    "text.color": DRAWN["ink"],
    "axes.labelcolor": DRAWN["muted"],
    "axes.edgecolor": DRAWN["line"],
    "xtick.color": DRAWN["line"],
    "ytick.color": DRAWN["line"],
    "xtick.labelcolor": DRAWN["muted"],
    "ytick.labelcolor": DRAWN["muted"],
    "grid.color": DRAWN["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}


def draw(name: str, label: str, width: float, height: float, paint: Callable[[Figure], None]) -> str:
    """Return an ``<svg>`` element of a figure that ``paint`` fills, ``width`` by ``height`` pixels."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # matplotlib derives its ids from a random salt. A fixed salt for each drawing gives the same bytes every time.
    settings: Any = {**SETTINGS, "svg.hashsalt": f"flab {name}"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # matplotlib's font may lack a glyph that the page's font has.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return cleaned(written.getvalue(), name, label)


def cleaned(svg: str, name: str, label: str) -> str:
    """Return the element alone, without the parts of a separate file and in the page's colours."""
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    # Ids must be unique on a page with several drawings. Ids of groups are not needed and are removed. The others
    # get the drawing's name.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace("xlink:href", "href")
    body = _own_ids(body, name)
    body = re.sub(r"font: (?:(\d+) )?([\d.]+px)[^;\"]*", _without_family, body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    # The drawing uses colours that occur nowhere else. They become variables of the page, which change in dark mode.
    for placeholder, (_, shown) in COLOURS.items():
        body = body.replace(placeholder, shown)
    body = re.sub(r">\s+<", "><", body).strip()
    title = escape(label, quote=True)
    return f'<svg class="chart" viewBox="{view[1]}" role="img" aria-label="{title}"><title>{title}</title>{body}</svg>'


def _without_family(font: re.Match[str]) -> str:
    """Return the weight and size of a text. Its font family is the page's."""
    return f"font-weight: {font[1]}; font-size: {font[2]}" if font[1] else f"font-size: {font[2]}"


def _own_ids(body: str, name: str) -> str:
    """Return new ids for the drawing's definitions, which begin with its name so that drawings do not share ids."""
    for number, found in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', body))):
        new = f"{name}-{number}"
        body = body.replace(f'id="{found}"', f'id="{new}"').replace(f'"#{found}"', f'"#{new}"')
        body = body.replace(f"url(#{found})", f"url(#{new})")
    return body
