"""One style for every figure, and files that come out as the same bytes each time.

Colours are those of Okabe and Ito (2008) without the yellow, told apart with any common colour blindness, and nothing
is said by colour alone: clusters carry numbers, bars carry values. No pyplot: nothing is global and nothing leaks.
"""

import functools
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codeact_lib.artifacts import atomic_write

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, INK = "#56B4E9", "#CC79A7", "#222222"
MUTED, FAINT = "#6B7280", "#D9DCE1"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, MUTED, "#004D73", "#8C6100", INK)
ARM_COLOURS = {"CodeACT": BLUE, "full data": ORANGE, "random 40%": PINK, "base model": MUTED}
STRATEGY_NAMES = {
    "traditional": "Traditional padding",
    "dynamic": "Dynamic padding",
    "dynamic_pack": "Dynamic Pack",
    "balanced_pack": "Balanced pack",
    "flat": "Flat row",
}
FORMATS = ("svg", "pdf", "png")
_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so text has the same width everywhere
    "font.size": 9.5,
    "text.hinting": "no_hinting",  # so that text is as wide at 150 dpi as the layout found at 100 dpi
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.09,  # inches
    "figure.constrained_layout.h_pad": 0.06,
    "savefig.dpi": 150,
    "svg.fonttype": "path",
    "svg.hashsalt": "codeact",  # without it the ids inside an SVG are drawn at random
    "pdf.fonttype": 42,
}


# ---- a figure and its file -----------------------------------------------------------------------------------------
def style() -> AbstractContextManager[None]:
    """Context manager with the project's matplotlib settings, for plots of one's own: `with style(): ...`."""
    return matplotlib.rc_context(_STYLE)


P = ParamSpec("P")


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: draw in the project's style."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return function(*args, **kwargs)

    return drawn


class _Canvas(Figure):
    """A Figure that shows itself in a notebook without pyplot or a magic line."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with style():
            _settle(self)
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of that size in inches and its axes, as matplotlib's `Figure.subplots` returns them."""
    figure = _Canvas(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def _settle(fig: Figure) -> None:
    """Lay the figure out once: it would be done again, at the same cost, for every format."""
    if fig.get_layout_engine() is not None:
        for _ in range(2):  # the first pass only guesses the room that tick labels take
            fig.draw_without_rendering()
        fig.set_layout_engine("none")


def save_figure(fig: Figure, stem: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write `stem`.svg, .pdf and .png by rename; the same figure gives the same bytes. Returns the paths."""
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with style():
        _settle(fig)
    paths = []
    for suffix in formats:
        path = Path(f"{stem}.{suffix}")
        with style(), atomic_write(path, "wb") as file:
            fig.savefig(file, format=suffix, metadata=no_date[suffix])
        paths.append(path)
    return paths


# ---- what several figures draw -------------------------------------------------------------------------------------
def headline(fig: Figure, text: str) -> None:
    """A title over all panels."""
    fig.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=10.5)


def legend_on_top(ax: Axes, **options: Any) -> None:
    """The legend above the panel, where it covers nothing."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, **options)


def bar_places(frame: pd.DataFrame) -> tuple[np.ndarray, dict[str, float]]:
    """Height of each bar, and of the heading of each `group` where the frame has that column: groups stand apart."""
    places = np.arange(len(frame), dtype=float)
    if "group" not in frame or frame["group"].nunique() < 2:
        return places, {}
    numbers, names = pd.factorize(frame["group"])
    places += numbers
    return places, {name: places[numbers == i].min() - 0.8 for i, name in enumerate(names)}


def name_bars(axes: Sequence[Axes], places: np.ndarray, heads: dict[str, float], labels: Iterable[str]) -> None:
    """Write the label of each bar left of the first panel, and the headings of groups into all of them."""
    axes[0].set_yticks(places, list(labels))
    axes[0].set_ylim(places.max(initial=0) + 0.6, -1.3 if heads else -0.6)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
        for group, y in heads.items():
            ax.text(0, y, f" {group}", fontweight="bold", va="center", fontsize=9)
