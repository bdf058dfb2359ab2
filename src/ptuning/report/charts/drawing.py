"""From a matplotlib figure to an SVG element that belongs to the page: its colours, its font, its ids."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ptuning.threads import DRAWING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, SOFT, LINE, ACCENT, SECOND = "#1f1e1b", "#68655d", "#d9d6ce", "#0f6b5f", "#b4541a"
SERIES = (ACCENT, SECOND, "#3f5fb0", "#a03a7c", "#7a6a00", "#2f7d9a")
_VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}
"""The page's variable for each colour that charts are drawn in: it has a light and a dark value."""
WIDTH, HEIGHT = 5.4, 3.5
"""Inches, of an ordinary chart."""
_STYLE = {
    "svg.fonttype": "none",  # text stays text, so that the browser finds a font for any script
    "text.parse_math": False,  # a label may have dollar signs
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}

_HEADER = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"')
_STYLED = re.compile(r'style="([^"]*)"')
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font-family:[^;]*;\s*")
_USED = re.compile(r'url\(#([\w.-]+)\)|href="#([\w.-]+)"')
_ID = re.compile(r' id="([\w.-]+)"')


@contextmanager
def _drawing() -> Iterator[None]:
    """A block in which a chart is drawn. Other threads wait for it, so nothing else is computed in it.

    matplotlib's settings belong to the process. Some of those below have no other place, and a user's own
    style must not change the page, so they are set for the block and put back after it.
    """
    from matplotlib import style

    with DRAWING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's fonts have it
        with style.context(["default", _STYLE]):
            yield


def svg(name: str, draw: Callable[[Figure], None], *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """The ``<svg>`` element of a figure; the same for the same data.

    Args:
        name: In front of its ids, so that charts of one page do not share them.
        draw: Draws on an empty figure.
        width, height: Inches.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure

    stream = io.StringIO()
    with _drawing():
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _adapted(stream.getvalue(), name)


def _adapted(text: str, name: str) -> str:
    """The element alone, with the page's colours and font, and ids of its own."""
    text = _HEADER.sub("", text)
    text = _SIZE.sub(
        lambda found: f'{found[1]} style="width: {float(found[2]) * 4 / 3:.0f}px" aria-hidden="true"', text
    )
    text = _STYLED.sub(lambda found: f'style="{_restyled(found[1])}"', text)
    used: dict[str, str] = {}
    for found in _USED.finditer(text):
        used.setdefault(found[1] or found[2], f"{name}-{len(used)}")
    text = _ID.sub(lambda found: f' id="{used[found[1]]}"' if found[1] in used else "", text)
    return _USED.sub(
        lambda found: f"url(#{used[found[1]]})" if found[1] else f'href="#{used[found[2]]}"', text
    ).strip()


def _restyled(style: str) -> str:
    def variable(found: re.Match[str]) -> str:
        name = _VARIABLES.get(found[0])
        return found[0] if name is None else f"var({name})"

    return _COLOUR.sub(variable, _FONT.sub("", style))


def heat() -> Colormap:
    """Shades that show on light and on dark paper: the accent, from transparent to half covered."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    colour = to_rgb("#2a9d8c")
    return LinearSegmentedColormap.from_list("heat", [(*colour, 0.0), (*colour, 0.75)])


def named(label: str) -> str:
    """A user's label for :func:`legend`: matplotlib leaves out those that start with an underscore."""
    return f" {label}"


def legend(axes: Axes, **options: Any) -> None:
    """A legend outside the axes, where it covers nothing."""
    if axes.get_legend_handles_labels()[0]:
        made = axes.legend(
            **{
                "loc": "upper center",
                "bbox_to_anchor": (0.5, -0.18),
                "ncols": 2,
                "borderaxespad": 0,
                **options,
            }
        )
        for text in made.get_texts():
            text.set_text(text.get_text().removeprefix(" "))
