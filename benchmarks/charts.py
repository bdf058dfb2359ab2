"""A result as a picture: horizontal bars with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

OURS, THEIRS, INK = "#1f6fb2", "#b8bec6", "#222222"

Bar = tuple[str, float, float | None, str]
"""Name, length, where a mark stands in it, and the label behind it."""


def draw(
    file: Path, title: str, axis: str, bars: Sequence[Bar], *, under: str = "", mark: str = "first epoch"
) -> None:
    """Write ``file``, a PNG; bars stand in their order, ptuning's in colour.

    Args:
        file: Where.
        title: Above the bars.
        axis: What a length means.
        bars: What is drawn.
        under: A small line below.
        mark: What the mark in a bar means.
    """
    figure, axes = plt.subplots(figsize=(10, 1.5 + 0.46 * len(bars)), layout="constrained")
    longest = max((length for _, length, _, _ in bars), default=1.0)
    for at, (name, length, inner, label) in enumerate(bars):
        axes.barh(at, length, height=0.62, color=OURS if name.startswith("ptuning") else THEIRS)
        if inner is not None:
            axes.plot([inner, inner], [at - 0.31, at + 0.31], color=INK, linewidth=1.6)
        end = max(length, inner or 0)
        axes.text(end + longest * 0.012, at, label, va="center", fontsize=9.5, color=INK)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.55)  # room for the labels
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    marked = any(inner is not None for _, _, inner, _ in bars)
    axes.set_xlabel(axis + (f"; the black line is the {mark}" if marked else ""), fontsize=9.5)
    axes.set_title(title, fontsize=12, loc="left", color=INK)
    if under:
        figure.supxlabel(under, fontsize=7.5, color="#666666")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
