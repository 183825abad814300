"""Figures of stages 01 to 03: clusters, difficulty, and what was chosen."""

from collections.abc import Iterable, Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from codeact_lib.figures import style

# axes end here: a weak scorer gives a few short answers an IFD of ten and more
IFD_TOP = 3.0
IFD_BAR = 0.05
# of a scatter; more take long to draw and show nothing new
MOST_POINTS = 20_000


@style.styled()
def cluster_map(x: ArrayLike, y: ArrayLike, labels: ArrayLike) -> Figure:
    """Scatter of instructions on a 2-D projection, coloured and numbered by cluster. Arrays of length n."""
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    labels = np.asarray(labels)
    clusters, sizes = np.unique(labels, return_counts=True)
    fig, ax = style.canvas(6.4, 4.6)
    for i, cluster in enumerate(clusters):
        inside = labels == cluster
        # beyond ten clusters colours come again; the number tells them apart
        colour = style.PALETTE[i % len(style.PALETTE)]
        ax.scatter(x[inside], y[inside], s=7, color=colour, alpha=0.55, linewidths=0, rasterized=True)
        # the median, for a few outliers of a projection would draw the mean out of its cluster
        centre = (np.median(x[inside]), np.median(y[inside]))
        circle = {"boxstyle": "circle,pad=0.22", "facecolor": "white", "edgecolor": colour, "linewidth": 1.8}
        ax.annotate(str(cluster), centre, ha="center", va="center", fontweight="bold", bbox=circle)
    ax.set(xlabel="component 1 of the embeddings", ylabel="component 2", xticks=[], yticks=[])
    ax.set_title(f"{len(clusters)} clusters of {sizes.min():,} to {sizes.max():,} instructions")
    return fig


@style.styled()
def ifd_histogram(ifd: ArrayLike, clusters: ArrayLike) -> Figure:
    """Histogram of IFD with the limit 1 drawn in, and in a second panel each cluster's quantiles.

    ifd: (n,) ratios without unit, NaN where a row has no score. clusters: (n,) labels.
    """
    ifd = np.asarray(ifd, float)
    scored = ifd[np.isfinite(ifd)]
    top = _ifd_top(scored)
    fig, (ax, beside) = style.canvas(9.2, 3.9, 1, 2)
    _ifd_quantiles(beside, scored, np.asarray(clusters)[np.isfinite(ifd)])
    edges = np.linspace(0, top, round(top / IFD_BAR) + 1)
    counts, _ = np.histogram(np.clip(scored, 0, top), bins=edges)
    colours = np.where(edges[:-1] < 1 - 1e-9, style.BLUE, style.RED)
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, edgecolor="white", linewidth=0.4)
    ax.axvline(1, color=style.INK, linewidth=1, linestyle="--")
    place = {"xytext": (7, 0), "xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
    ax.annotate("1: the instruction\nstops helping", (1, 0.98), **place)
    more = f"; last bar: {top:g} and more" if (scored > top).any() else ""
    ax.set(xlabel=f"IFD = PPL(answer | instruction) / PPL(answer){more}", ylabel="rows", xlim=(0, top))
    ax.margins(y=0.15)  # room for the words above the line
    share = np.sum(scored >= 1) / max(len(scored), 1)
    ax.set_title(f"{share:.1%} of rows have IFD ≥ 1 and are dropped")
    return fig


def _ifd_top(ifd: np.ndarray) -> float:
    # Where an IFD axis ends: at the 99.5% quantile, but within 1.5 and `IFD_TOP`; higher values stand at the end. In
    # whole bars, so that one of them begins at 1.
    if not len(ifd):
        return 1.5
    top = np.clip(np.quantile(ifd, 0.995), 1.5, IFD_TOP)
    return float(np.ceil(top * 20 - 1e-9) / 20)


def _ifd_quantiles(ax: Axes, ifd: np.ndarray, clusters: np.ndarray) -> None:
    names = np.unique(clusters)
    top = _ifd_top(ifd)
    xlabel = "IFD: 5-95% (line), 25-75% (bar), median (dot)"
    for position, cluster in enumerate(names):
        inside = np.minimum(ifd[clusters == cluster], top)
        low, quarter, middle, three, high = np.quantile(inside, [0.05, 0.25, 0.5, 0.75, 0.95])
        if high >= top:
            xlabel = f"IFD: 5-95% (line), 25-75% (bar), median (dot)\nhigher values drawn at {top:g}"
        ax.plot([low, high], [position] * 2, color=style.BLUE, linewidth=1.2, solid_capstyle="butt")
        ax.plot([quarter, three], [position] * 2, color=style.BLUE, linewidth=6, alpha=0.45, solid_capstyle="butt")
        ax.plot(middle, position, "o", color=style.INK, markersize=4.5)
    ax.axvline(1, color=style.INK, linewidth=1, linestyle="--")
    ax.set(xlabel=xlabel, ylabel="cluster")
    ax.set_yticks(range(len(names)), list(map(str, names)))
    ax.invert_yaxis()
    ax.set_title("Difficulty by cluster")


@style.styled()
def ifd_against_length(ifd: ArrayLike, n_tokens: ArrayLike, kept: ArrayLike) -> Figure:
    """Scatter of IFD over the length of the answer (logarithmic): chosen rows over the dropped ones.

    ifd: (n,) ratios, NaN where a row has no score. n_tokens: (n,) answer tokens. kept: (n,) booleans.
    """
    ifd = np.asarray(ifd, float)
    n_tokens = np.asarray(n_tokens, float)
    kept = np.asarray(kept, bool)
    shown = np.flatnonzero(np.isfinite(ifd) & (n_tokens > 0))
    # above `MOST_POINTS` every so many-th is drawn
    shown = shown[:: len(shown) // MOST_POINTS + 1]
    top = _ifd_top(ifd[shown])
    fig, ax = style.canvas(7.2, 4.2)
    for chosen, colour, alpha, name in ((False, style.MUTED, 0.35, "dropped"), (True, style.BLUE, 0.6, "chosen")):
        rows = shown[kept[shown] == chosen]
        look = {"s": 9, "color": colour, "alpha": alpha, "linewidths": 0, "rasterized": True}
        label = f"{name} ({(kept == chosen).sum():,})"
        ax.scatter(n_tokens[rows], np.minimum(ifd[rows], top), label=label, **look)
    # a logarithmic axis without any point cannot be drawn
    if not len(shown):
        ax.set_xlim(1, 1000)
        ax.text(0.5, 0.3, "no row has a score", ha="center", transform=ax.transAxes)
    ax.axhline(1, color=style.INK, linewidth=1, linestyle="--")
    more = f" (higher values drawn at {top:g})" if (ifd[shown] > top).any() else ""
    ax.set(xscale="log", xlabel="answer tokens (logarithmic)", ylabel=f"IFD{more}", ylim=(0, top * 1.02))
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    style.legend_on_top(ax, ncols=2, markerscale=2)
    style.headline(fig, "Difficulty against the length of the answer")
    return fig


@style.styled()
def selection_bars(kept: ArrayLike, dropped: Mapping[str, ArrayLike], *, labels: Iterable[object]) -> Figure:
    """Rows kept and dropped per cluster as stacked bars.

    kept: (k,) counts. dropped: reason -> (k,) counts. labels: (k,) cluster names.
    """
    kept = np.asarray(kept, float)
    places = range(len(kept))
    fig, ax = style.canvas(7.2, 0.30 * len(kept) + 1.5)
    start = np.zeros(len(kept))
    colours = (style.BLUE, style.FAINT, style.RED, style.ORANGE, style.PINK, style.MUTED)
    for (name, counts), colour in zip({"kept": kept, **dropped}.items(), colours, strict=False):
        counts = np.asarray(counts, float)
        label = f"{name} ({counts.sum():,.0f})"
        ax.barh(places, counts, left=start, color=colour, edgecolor="white", label=label)
        start = start + counts
    for y, count in enumerate(kept):
        # in a shorter bar there is no room
        if count >= start.max() / 16:
            ax.text(count, y, f" {count:,.0f} ", ha="right", va="center", color="white", fontsize=8, fontweight="bold")
    ax.set_yticks(places, list(map(str, labels)))
    ax.set(xlabel="rows", ylabel="cluster", xlim=(0, max(start.max(initial=0), 1)))
    ax.invert_yaxis()
    style.legend_on_top(ax, ncols=min(1 + len(dropped), 3), columnspacing=1.2)  # more columns would not fit the width
    share = kept.sum() / max(start.sum(), 1)
    style.headline(fig, f"{kept.sum():,.0f} of {start.sum():,.0f} rows kept ({share:.0%})")
    return fig
