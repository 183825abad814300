"""Figures of stages 01 to 03: clusters, difficulty, and what was chosen."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from codeact_lib.figures.style import BLUE, FAINT, INK, MUTED, ORANGE, PALETTE, PINK, RED, _canvas, _headline, _styled


# Stages 01-03: what is chosen
@_styled
def cluster_map(x, y, labels, *, title: str | None = None) -> Figure:
    """Scatter of instructions on a 2-D projection, coloured and numbered by cluster. Arrays of length n."""
    x, y, labels = np.asarray(x, float), np.asarray(y, float), np.asarray(labels)
    clusters, sizes = np.unique(labels, return_counts=True)
    fig, ax = _canvas(6.4, 4.6)
    for i, cluster in enumerate(clusters):
        inside = labels == cluster
        colour = PALETTE[i % len(PALETTE)]
        ax.scatter(x[inside], y[inside], s=7, color=colour, alpha=0.55, linewidths=0, rasterized=True)
        ax.annotate(
            str(cluster),
            (np.median(x[inside]), np.median(y[inside])),
            ha="center",
            va="center",
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.22", "facecolor": "white", "edgecolor": colour, "linewidth": 1.8},
        )
    ax.set(xlabel="component 1 of the embeddings", ylabel="component 2", xticks=[], yticks=[])
    ax.set_title(title or f"{len(clusters)} clusters of {sizes.min():,} to {sizes.max():,} instructions")
    return fig


@_styled
def ifd_histogram(ifd, clusters=None, *, title: str | None = None) -> Figure:
    """Histogram of IFD with the limit 1 drawn in; with ``clusters`` a second panel gives each cluster's quantiles.

    ifd: (n,) ratios without unit, NaN where a row has no score. clusters: (n,) labels.
    """
    ifd = np.asarray(ifd, float)
    usable = np.isfinite(ifd)
    fig, axes = _canvas(9.2 if clusters is not None else 6.4, 3.9, 1, 1 if clusters is None else 2, squeeze=False)
    _ifd_bars(axes[0, 0], ifd[usable])
    share = float(np.mean(ifd[usable] >= 1)) if usable.any() else 0.0
    axes[0, 0].set_title(title or f"{share:.1%} of rows have IFD ≥ 1 and are dropped")
    if clusters is not None:
        _ifd_quantiles(axes[0, 1], ifd[usable], np.asarray(clusters)[usable])
    return fig


IFD_TOP = 3.0  # axes end here: a weak scorer gives a few short answers an IFD of ten and more


def _ifd_top(ifd) -> float:
    """Where an IFD axis ends: at the 99.5% quantile, but within 1.5 and ``IFD_TOP``; higher values stand at the end.

    In whole bars of 0.05, so that one of them begins at 1.
    """
    return float(np.ceil(np.clip(np.quantile(ifd, 0.995), 1.5, IFD_TOP) * 20 - 1e-9) / 20) if len(ifd) else 1.5


def _ifd_bars(ax, ifd) -> None:
    top = _ifd_top(ifd)
    edges = np.linspace(0, top, round(top / 0.05) + 1)
    counts, _ = np.histogram(np.clip(ifd, 0, top), bins=edges)
    colours = [BLUE if edge < 1 - 1e-9 else RED for edge in edges[:-1]]
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, edgecolor="white", linewidth=0.4)
    ax.axvline(1, color=INK, linewidth=1, linestyle="--")
    ax.annotate(
        "1: the instruction\nstops helping",
        (1, 0.98),
        (7, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
    )
    more = f"; last bar: {top:g} and more" if (ifd > top).any() else ""
    ax.set(xlabel=f"IFD = PPL(answer | instruction) / PPL(answer){more}", ylabel="rows", xlim=(0, top))
    ax.margins(y=0.15)  # room for the words


def _ifd_quantiles(ax, ifd, clusters) -> None:
    names, top, cut = np.unique(clusters), _ifd_top(ifd), False
    for position, cluster in enumerate(names):
        inside = np.minimum(ifd[clusters == cluster], top)
        low, quarter, middle, three, high = np.quantile(inside, [0.05, 0.25, 0.5, 0.75, 0.95])
        cut |= high >= top
        ax.plot([low, high], [position] * 2, color=BLUE, linewidth=1.2, solid_capstyle="butt")
        ax.plot([quarter, three], [position] * 2, color=BLUE, linewidth=6, alpha=0.45, solid_capstyle="butt")
        ax.plot(middle, position, "o", color=INK, markersize=4.5)
    ax.axvline(1, color=INK, linewidth=1, linestyle="--")
    more = f"\nhigher values drawn at {top:g}" if cut else ""
    ax.set(xlabel=f"IFD: 5-95% (line), 25-75% (bar), median (dot){more}", ylabel="cluster")
    ax.set_yticks(range(len(names)), [str(name) for name in names])
    ax.invert_yaxis()
    ax.set_title("Difficulty by cluster")


@_styled
def ifd_against_length(ifd, n_tokens, kept, *, title: str | None = None) -> Figure:
    """Scatter of IFD over the length of the answer (logarithmic): chosen rows over the dropped ones.

    ifd: (n,) ratios, NaN where a row has no score. n_tokens: (n,) answer tokens. kept: (n,) booleans. Above 20,000
    points every so many-th is drawn.
    """
    ifd, n_tokens, kept = np.asarray(ifd, float), np.asarray(n_tokens, float), np.asarray(kept, bool)
    shown = np.flatnonzero(np.isfinite(ifd) & (n_tokens > 0))
    shown = shown[:: len(shown) // 20_000 + 1]
    top = _ifd_top(ifd[shown])
    fig, ax = _canvas(7.2, 4.2)
    for chosen, colour, name in ((False, MUTED, "dropped"), (True, BLUE, "chosen")):
        rows = shown[kept[shown] == chosen]
        points = n_tokens[rows], np.minimum(ifd[rows], top)
        style = {"color": colour, "alpha": 0.6 if chosen else 0.35, "linewidths": 0, "rasterized": True}
        ax.scatter(*points, s=9, label=f"{name} ({(kept == chosen).sum():,})", **style)
    if not len(shown):  # a logarithmic axis without any point cannot be drawn
        ax.set_xlim(1, 1000)
        ax.text(0.5, 0.3, "no row has a score", ha="center", transform=ax.transAxes)
    ax.axhline(1, color=INK, linewidth=1, linestyle="--")
    ylabel = "IFD" + (f" (higher values drawn at {top:g})" if (ifd[shown] > top).any() else "")
    ax.set(xscale="log", xlabel="answer tokens (logarithmic)", ylabel=ylabel, ylim=(0, top * 1.02))
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, markerscale=2)
    _headline(fig, title or "Difficulty against the length of the answer")
    return fig


@_styled
def selection_bars(kept, dropped, *, labels=None, title: str | None = None) -> Figure:
    """Rows kept and dropped per cluster as stacked bars.

    kept: (k,) counts. dropped: (k,) counts, or a mapping from the reason to (k,) counts. labels: (k,) cluster names.
    """
    kept = np.asarray(kept, float)
    reasons = dropped if isinstance(dropped, Mapping) else {"dropped": dropped}
    labels = [str(label) for label in (range(len(kept)) if labels is None else labels)]
    fig, ax = _canvas(7.2, 0.30 * len(kept) + 1.5)
    start = np.zeros(len(kept))
    for (name, counts), colour in zip(
        {"kept": kept, **reasons}.items(), (BLUE, FAINT, RED, ORANGE, PINK, MUTED), strict=False
    ):
        counts = np.asarray(counts, float)
        label = f"{name} ({counts.sum():,.0f})"
        ax.barh(range(len(kept)), counts, left=start, color=colour, edgecolor="white", label=label)
        start = start + counts
    for y, count in enumerate(kept):
        if count < start.max() / 16:
            continue  # no room in the bar
        ax.text(count, y, f" {count:,.0f} ", ha="right", va="center", color="white", fontsize=8, fontweight="bold")
    ax.set_yticks(range(len(kept)), labels)
    ax.set(xlabel="rows", ylabel="cluster", xlim=(0, max(start.max(initial=0), 1)))
    ax.invert_yaxis()
    columns = {"ncols": min(len(reasons) + 1, 3), "columnspacing": 1.2}  # more would not fit the width
    ax.legend(**columns, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    share = kept.sum() / max(start.sum(), 1)
    _headline(fig, title or f"{kept.sum():,.0f} of {start.sum():,.0f} rows kept ({share:.0%})")
    return fig
