"""One style for every figure, and files that come out as the same bytes each time.

Colours are those of Okabe and Ito (2008) without the yellow, told apart with any common colour blindness, and nothing
is said by colour alone: clusters carry numbers, bars carry values. No pyplot: nothing is global and nothing leaks.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codeact_lib.artifacts import atomic_write

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, INK = "#56B4E9", "#CC79A7", "#222222"
MUTED, FAINT = "#6B7280", "#D9DCE1"
# taken in this order: the first six are the ones easiest to tell apart, the rest only serves many clusters
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
_STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("codeact.mplstyle"), use_default_template=False)


@contextmanager
def styled() -> Iterator[None]:
    """The project's matplotlib settings, as a decorator `@styled()` or for plots of one's own `with styled(): ...`."""
    with matplotlib.rc_context(_STYLE):
        yield


class _Canvas(Figure):
    """A Figure that shows itself in a notebook without pyplot or a magic line."""

    @styled()
    def _repr_png_(self) -> bytes:
        _settle(self)
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of that size in inches and its axes, as matplotlib's `Figure.subplots` returns them."""
    figure = _Canvas(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def _settle(fig: Figure) -> None:
    # Lay the figure out once: it would be done again, at the same cost, for every format.
    if fig.get_layout_engine() is not None:
        # the first pass only guesses the room that tick labels take
        for _ in range(2):
            fig.draw_without_rendering()
        fig.set_layout_engine("none")


@styled()
def save_figure(fig: Figure, stem: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write `stem`.svg, .pdf and .png by rename; the same figure gives the same bytes. Returns the paths."""
    # else every file would differ from the last by the second it was written in
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    _settle(fig)
    paths = []
    for suffix in formats:
        path = Path(f"{stem}.{suffix}")
        with atomic_write(path, "wb") as file:
            fig.savefig(file, format=suffix, metadata=no_date[suffix])
        paths.append(path)
    return paths


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
