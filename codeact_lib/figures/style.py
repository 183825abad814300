"""One style for every figure, and files that come out as the same bytes each time.

Colours are those of Okabe and Ito (2008) without the yellow, told apart with any common colour blindness, and nothing
is said by colour alone: clusters carry numbers, bars carry values. No pyplot: nothing is global and nothing leaks.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from codeact_lib.artifacts import atomic_write

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, INK = "#56B4E9", "#CC79A7", "#222222"
MUTED, FAINT = "#6B7280", "#D9DCE1"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, MUTED, "#004D73", "#8C6100", INK)
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


def style():
    """Context manager with the project's matplotlib settings, for plots of one's own: ``with figures.style(): ...``."""
    return matplotlib.rc_context(_STYLE)


class _Canvas(Figure):
    """A Figure that shows itself in a notebook without pyplot or a magic line."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with style():
            _settle(self)
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def _styled(function):
    @functools.wraps(function)
    def drawn(*args, **kwargs):
        with style():
            return function(*args, **kwargs)

    return drawn


def _canvas(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs):
    figure = _Canvas(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def _settle(fig: Figure) -> None:
    """Lay the figure out once: it would be done again, at the same cost, for every format."""
    if fig.get_layout_engine() is not None:
        for _ in range(2):  # the first pass only guesses the room that tick labels take
            fig.draw_without_rendering()
        fig.set_layout_engine("none")


def _headline(fig: Figure, text: str) -> None:
    fig.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=10.5)


def save_figure(fig: Figure, stem: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write ``stem``.svg, .pdf and .png by rename; the same figure gives the same bytes. Returns the paths."""
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    paths = [Path(f"{stem}.{suffix}") for suffix in formats]
    with style():
        _settle(fig)
    for path in paths:
        suffix = path.suffix[1:]
        with style(), atomic_write(path, "wb") as file:
            fig.savefig(file, format=suffix, metadata=no_date[suffix])
    return paths


# Quantities in the unit a person would say them in
def time_unit(seconds: float) -> tuple[float, str]:
    """Divisor and name of the unit that fits a number of seconds: s below 2 min, min below 2 days, h above."""
    return (1.0, "s") if seconds < 120 else (60.0, "min") if seconds < 172_800 else (3600.0, "h")


def memory_unit(n_bytes: float) -> tuple[float, str]:
    """Divisor and name of the unit that fits a number of bytes: MB (1e6) below 1 GB (1e9)."""
    return (1e6, "MB") if n_bytes < 1e9 else (1e9, "GB")


def number(value: float) -> str:
    """A measured number with three significant digits where it has decimals: 1,234 / 58.3 / 2.07 / 63."""
    text = f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"
    return text.removesuffix(".00").removesuffix(".0")
