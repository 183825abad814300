"""Every plot of the project, in one style: plain arrays or frames in, a matplotlib ``Figure`` out.

    from codeact_lib import figures
    fig = figures.cluster_map(x, y, labels)      # the last line of a notebook cell shows it as PNG
    figures.save_figure(fig, "figures/clusters") # writes .svg, .pdf and .png, the same bytes each time

Colours are those of Okabe and Ito (2008) without the yellow, told apart with any common colour blindness, and nothing
is said by colour alone: clusters carry numbers, bars carry values. No pyplot: nothing is global and nothing leaks.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

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


# Stage 04: how it is batched

STRATEGY_NAMES = {
    "traditional": "Traditional padding",
    "dynamic": "Dynamic padding",
    "dynamic_pack": "Dynamic Pack",
    "balanced_pack": "Balanced pack",
    "flat": "Flat row",
}


@_styled
def padding_illustration(lengths, max_length: int, *, rows: Mapping[str, list[list[int]]] | None = None) -> Figure:
    """The padding strategies drawn as grids of token slots: coloured = a sample's tokens, blank = padding.

    lengths: tokens of each sample in one batch. rows: strategy -> rows of sample indices; by default what
    ``packing.plan_rows`` plans for the paper's three (CodeACT, figure 2). Every row is as wide as the strategy pads it.
    """
    lengths = [int(length) for length in lengths]
    if rows is None:
        from codeact_lib.packing.plan import plan_rows  # imports torch, which the other figures do not need

        rows = {name: plan_rows(lengths, max_length, name) for name in ("traditional", "dynamic", "dynamic_pack")}
    heights = [len(planned) + 1.1 for planned in rows.values()]
    fig, axes = _canvas(7.6, 0.24 * sum(heights) + 0.5, len(rows), 1, squeeze=False, height_ratios=heights, sharex=True)
    for ax, (strategy, planned) in zip(axes[:, 0], rows.items(), strict=True):
        _slot_grid(ax, strategy, planned, lengths, max_length)
    axes[-1, 0].set_xlabel(f"token slots (the model's maximum is {max_length:,})")
    axes[-1, 0].set_xlim(0, 1.005 * max(ax.patches[0].get_width() for ax in axes[:, 0]))
    return fig


def _slot_grid(ax, strategy: str, planned, lengths, max_length: int) -> None:
    """One strategy's rectangle; single slots are outlined only where they are wide enough to be seen."""
    used = [sum(lengths[i] for i in row) for row in planned]
    width = max_length if strategy == "traditional" else max(used)
    for y, row in enumerate(planned):
        ax.add_patch(Rectangle((0, y), width, 0.86, facecolor="white", edgecolor=FAINT, linewidth=0.8))
        _slot_row(ax, y, row, lengths, max_length)
    if max_length <= 64:
        ax.vlines(np.arange(1, width), 0, len(planned) - 0.14, color=FAINT, linewidth=0.8)
    total = width * len(planned)
    name, rows = STRATEGY_NAMES.get(strategy, strategy), f"{len(planned)} row{'s' * (len(planned) != 1)}"
    ax.set_title(f"{name}: {rows} × {width:,} = {total:,} slots, {1 - sum(used) / total:.0%} padding", pad=3)
    ax.set(ylim=(len(planned), -0.1), yticks=[])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(bottom=False)


def _slot_row(ax, y: int, row, lengths, max_length: int) -> None:
    start = 0
    for i in row:
        colour, ink = PALETTE[i % 6], "white" if PALETTE[i % 6] in (BLUE, GREEN, RED) else INK
        ax.add_patch(Rectangle((start, y), lengths[i], 0.86, facecolor=colour, edgecolor="white", linewidth=1.4))
        if lengths[i] > max_length / 45:
            x = start + (0.5 if max_length <= 64 else lengths[i] / 2)  # inside one slot where slots are outlined
            ax.text(x, y + 0.47, str(i + 1), ha="center", va="center", fontsize=8, color=ink, fontweight="bold")
        start += lengths[i]


@_styled
def padding_rates(report, *, title: str | None = None) -> Figure:
    """Share of token slots that are padding. report: one row a bar with ``strategy``, ``padding_rate`` (0..1).

    An optional column ``group`` (a data set) sets bars apart under a heading. Where the report has ``attention_pairs``
    and ``isolated_pairs`` (``packing.padding_report``), a second panel shows what attention over whole rows costs, in
    multiples of attention inside each sample.
    """
    rates, (places, heads) = np.asarray(report["padding_rate"], float) * 100, _places(report)
    names = [STRATEGY_NAMES.get(name, str(name)) for name in report["strategy"]]
    with_attention = "attention_pairs" in report
    size = (6.8 + 2.8 * with_attention, 0.36 * (places.max(initial=0) + 1) + 1.2)
    fig, axes = _canvas(*size, 1, 1 + with_attention, squeeze=False, sharey=True)
    packed = ["pack" in name.lower() or name == STRATEGY_NAMES["flat"] for name in names]
    colours = [BLUE if own else MUTED for own in packed]
    _rate_bars(axes[0, 0], places, rates, colours, "%")
    axes[0, 0].set(xlabel="padding (% of token slots)", xlim=(0, max(rates.max(initial=1) * 1.15, 1)))
    if with_attention:
        costs = np.asarray(report["attention_pairs"], float) / np.asarray(report["isolated_pairs"], float)
        _rate_bars(axes[0, 1], places, costs, colours, "×")
        axes[0, 1].set(xlabel="attention over whole rows (× inside samples)", xlim=(0, costs.max(initial=1) * 1.2))
    _name_bars(axes[0], places, heads, names)
    _headline(fig, title or f"Padding falls from {rates.max():.0f}% to {rates.min():.0f}% of the slots")
    return fig


def _rate_bars(ax, places, values, colours, symbol) -> None:
    ax.barh(places, values, color=colours, height=0.68)
    for place, value in zip(places, values, strict=True):
        ax.text(value, place, f" {value:.1f}{symbol}", va="center", fontsize=8.5)


@_styled
def loss_curves(curves: Mapping[str, Sequence], *, title: str | None = None) -> Figure:
    """Training loss over optimizer steps. curves: label -> [(step, loss)] or [{"step": .., "loss": ..}].

    The faint line is what was logged, the strong one its running mean over a twentieth of the curve.
    """
    fig, ax = _canvas(6.8, 3.7)
    for (label, points), colour in zip(curves.items(), PALETTE * (len(curves) // len(PALETTE) + 1), strict=False):
        pairs = [(p["step"], p["loss"]) if isinstance(p, Mapping) else tuple(p)[:2] for p in points]
        steps, losses = np.array(pairs, float).reshape(-1, 2).T
        window = max(1, len(losses) // 20)
        ax.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        line = {"color": colour, "linewidth": 1.7, "marker": "o" if len(losses) == 1 else None}
        ax.plot(steps, _running_mean(losses, window), label=label, **line)
    ax.grid(axis="y")
    ax.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
    ax.set_ylim(bottom=0)
    ax.set_title(title or "Training loss")
    if len(curves) > 1 or next(iter(curves), ""):
        ax.legend()
    return fig


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over about ``window`` values centred on each point, fewer at the ends."""
    sums, places, half = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values)), window // 2
    starts, stops = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[stops] - sums[starts]) / (stops - starts)


# Stages 05-06: what came of it


_ARMS = {"CodeACT": BLUE, "full data": ORANGE, "random 40%": PINK, "base model": MUTED}


def _arm_colours(labels: Sequence[str]) -> dict[str, str]:
    """An arm keeps its colour over all figures; CDAS at another rate is one kind; others take the colours left."""
    left = [colour for colour in PALETTE if colour not in (*_ARMS.values(), SKY)]
    rates = {label: SKY for label in labels if label.startswith("CDAS ") and label.endswith("%")}
    others = [label for label in dict.fromkeys(labels) if label not in _ARMS | rates]
    return _ARMS | rates | {label: left[i % len(left)] for i, label in enumerate(others)}


def _places(frame) -> tuple[np.ndarray, dict[str, float]]:
    """Height of each bar, and of the heading of each ``group`` where the frame has that column: groups stand apart."""
    groups = list(frame["group"]) if "group" in frame else [""] * len(frame)
    order = list(dict.fromkeys(groups))
    gap = 1.0 if len(order) > 1 else 0.0
    places = np.array([i + gap * order.index(group) for i, group in enumerate(groups)], float)
    heads = {group: min(p for p, g in zip(places, groups, strict=True) if g == group) - 0.8 for group in order}
    return places, heads if gap else {}


def _name_bars(axes, places, heads, labels) -> None:
    axes[0].set_yticks(places, labels)
    axes[0].set_ylim(places.max(initial=0) + 0.6, -1.3 if heads else -0.6)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
        for group, y in heads.items():
            ax.text(0, y, f" {group}", fontweight="bold", va="center", fontsize=9)


@_styled
def pass_at_one_bars(frame, *, title: str | None = None) -> Figure:
    """pass@1 with its 95% interval, one panel a benchmark, one bar a label.

    frame: one row a bar with ``label``, ``benchmark``, ``k``, ``n``, ``low``, ``high`` (fractions 0..1). Of several
    seeds ``rate`` and ``sd`` (fractions) are their mean and spread, printed in place of k/n. An optional ``group`` (a
    data set) sets bars apart under a heading. Each benchmark needs the same labels in the same order.
    """
    benchmarks = list(dict.fromkeys(frame["benchmark"]))
    parts = [frame[frame["benchmark"] == name].reset_index(drop=True) for name in benchmarks]
    places, heads = _places(parts[0])
    columns, rows = min(2, len(parts)), -(-len(parts) // 2)
    size = (5.0 * columns + 0.8, rows * (0.30 * (places.max(initial=0) + 1.5) + 0.9))
    fig, axes = _canvas(*size, rows, columns, squeeze=False, sharey=True)
    for ax, name, part in zip(axes.flat, benchmarks, parts, strict=False):
        _interval_bars(ax, part, places, _arm_colours(frame["label"]))
        ax.set_title(name)
    _name_bars(axes.flat[: len(parts)], places, heads, list(parts[0]["label"]))
    for ax in axes.flat[len(parts) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("pass@1 (%), black line: 95% interval")
    _headline(fig, title or "pass@1 by arm")
    return fig


def _interval_bars(ax, part, places, colours) -> None:
    for y, row in zip(places, part.to_dict("records"), strict=True):
        averaged = np.isfinite(row.get("sd", np.nan))
        rate, high = 100 * (row["rate"] if averaged else row["k"] / row["n"]), 100 * row["high"]
        said = f"{rate:.1f} ± {100 * row['sd']:.1f}" if averaged else f"{rate:.1f} ({row['k']}/{row['n']})"
        ax.barh(y, rate, color=colours[row["label"]], height=0.7, alpha=0.85)
        ax.plot([100 * row["low"], high], [y, y], color=INK, linewidth=1.3)
        ax.text(max(high, rate) + 1.5, y, said, va="center", fontsize=8)
    ax.set(xlim=(0, 124), xticks=range(0, 101, 20))
    ax.spines["bottom"].set_bounds(0, 100)
    ax.grid(axis="x")


@_styled
def time_memory_bars(frame, *, title: str | None = None) -> Figure:
    """Training time and peak memory side by side. frame: ``label``, ``seconds``, ``memory_bytes`` (NaN: not measured).

    An optional column ``group`` (a data set) sets bars apart under a heading.
    """
    labels, (places, heads) = [str(label) for label in frame["label"]], _places(frame)
    fig, axes = _canvas(9.6, 0.30 * (places.max(initial=0) + 1.5) + 1.1, 1, 2, sharey=True)
    units = (("seconds", time_unit, "training time"), ("memory_bytes", memory_unit, "peak memory"))
    for ax, (column, unit, name) in zip(axes, units, strict=True):
        values = np.asarray(frame[column], float)
        divisor, symbol = unit(np.nanmax(values) if np.isfinite(values).any() else 0.0)
        _value_bars(ax, places, values / divisor, [_arm_colours(labels)[label] for label in labels], symbol)
        ax.set_xlabel(f"{name} ({symbol})")
    _name_bars(axes, places, heads, labels)
    _headline(fig, title or "Training time and peak memory")
    return fig


def _value_bars(ax, places, values, colours, symbol) -> None:
    shown = np.nan_to_num(values)
    ax.barh(places, shown, color=colours, height=0.7, alpha=0.85)
    for place, value in zip(places, values, strict=True):
        text = f" {number(value)} {symbol}" if np.isfinite(value) else " not measured"
        ax.text(np.nan_to_num(value), place, text, va="center", fontsize=8)
    ax.set_xlim(0, max(shown.max(initial=0) * 1.28, 1e-9))


@_styled
def data_efficiency(panels: Mapping[str, Any], *, benchmark: str = "HumanEval") -> Figure:
    """pass@1 against the number of training samples, one panel a source so that nothing is compared across sources.

    panels: heading -> frame with ``label``, ``samples``, ``pass_at_one`` (%), ``ours`` (bool), optional low/high (%).
    """
    most = max(map(len, panels.values()))
    fig, axes = _canvas(4.6 * len(panels) + 0.4, max(3.6, 0.2 * most + 1.6), 1, len(panels), squeeze=False)
    for ax, (heading, frame) in zip(axes[0], panels.items(), strict=True):
        _efficiency_panel(ax, frame)
        ax.set_title(heading)
        ax.set_ylabel(f"{benchmark} pass@1 (%)")
    return fig


def _efficiency_panel(ax, frame) -> None:
    rows = _dodged(frame.to_dict("records"))
    for row in rows:
        colour, marker = (BLUE, "o") if row["ours"] else (MUTED, "s")
        if np.isfinite(row.get("low", np.nan)):
            ax.plot([row["x"]] * 2, [row["low"], row["high"]], color=colour, linewidth=1)
        ax.plot(row["x"], row["pass_at_one"], marker, color=colour, markersize=6.5)
    xs = [row["samples"] for row in rows]
    ax.set_xscale("log")
    ax.set_xlim(min(xs) / 1.35, max(row["x"] for row in rows) * 1.2)
    ax.margins(y=0.12)
    _side_labels(ax, rows)
    ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(_round_ticks(min(xs), max(xs))))
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel("training samples (logarithmic)")
    ax.grid(axis="y")


def _dodged(rows: list[dict]) -> list[dict]:
    """Rows with about the same number of samples side by side (3% apart), so that no interval hides another."""
    for i, row in enumerate(rows):
        near = sum(abs(np.log(row["samples"] / other["samples"])) < 0.02 for other in rows[:i])
        row["x"] = row["samples"] * 1.03**near
    return rows


@_styled
def sampling_rate_curve(frame, scores: Mapping[str, str], *, title: str | None = None) -> Figure:
    """pass@1 against the share of the data that was chosen, one panel a ``setting``.

    frame: ``setting``, ``ratio`` (0..1) and columns of means in %, which ``scores`` maps to their names (those that the
    frame lacks are left out); an optional ``<column>_sd`` draws the spread over seeds.
    """
    scores = {column: label for column, label in scores.items() if column in frame} or scores
    nothing = [("nothing was run", frame.reindex(columns=["ratio", *scores]))]
    panels = list(frame.groupby("setting", sort=False)) or nothing
    fig, axes = _canvas(4.4 * len(panels) + 0.6, 3.6, 1, len(panels), squeeze=False, sharey=True)
    for ax, (name, part) in zip(axes[0], panels, strict=True):
        for (column, label), colour, marker in zip(scores.items(), PALETTE, "osD^v", strict=False):
            spread = part.get(f"{column}_sd")
            line = {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.4, "capsize": 2.5}
            ax.errorbar(100 * part["ratio"], part[column], yerr=spread, label=label, **line)
        ax.set_title(name)
        ax.set_xlabel("share of the data chosen (%), 100: all of it")
        ax.grid(axis="y")
    axes[0][0].set_ylabel("pass@1 (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), columnspacing=1.2, handlelength=1.6)
    _headline(fig, title or "How much to choose")
    return fig


def _round_ticks(low: float, high: float) -> list[float]:
    steps = [m * 10.0**e for e in range(0, 9) for m in (1, 2, 3, 5)]
    return [step for step in steps if low / 1.3 <= step <= high * 1.3]


def _side_labels(ax, rows) -> None:
    """Names in a column on the right, in the order of their points, each led to its own by a faint line."""
    rows = sorted(rows, key=lambda row: row["pass_at_one"])
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    gap = (high - low) * min(0.06, 0.95 / max(len(rows), 1))
    heights = _spread_apart([row["pass_at_one"] for row in rows], gap, low, high - gap / 2)
    for row, height in zip(rows, heights, strict=True):
        ax.annotate(
            row["label"],
            (row["x"], row["pass_at_one"]),
            (1.03, height),
            textcoords=ax.get_yaxis_transform(),
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.5,
                "alpha": 0.6,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
            va="center",
            fontsize=8,
            fontweight="bold" if row["ours"] else "normal",
            annotation_clip=False,
        )


def _spread_apart(values: list[float], gap: float, low: float, high: float) -> np.ndarray:
    """Sorted values moved as little as possible (least squares) to stand ``gap`` apart between ``low`` and ``high``."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(values))
    free = isotonic_regression(np.asarray(values, float) - steps).x
    return np.clip(free, low, high - gap * (len(values) - 1)) + steps


@_styled
def bench_bars(table, *, title: str | None = None) -> Figure:
    """Median seconds of each contender of a bench (whisker: fastest and slowest round), and its peak memory if known.

    ``table`` is what ``codeact_lib.bench.harness.compare`` returns.
    """
    names, places = table["contender"].tolist(), np.arange(len(table))[::-1]
    with_memory = "peak_memory_bytes" in table and bool((table["peak_memory_bytes"] > 0).any())
    fig, axes = _canvas(9.0, 1.3 + 0.3 * len(names), columns=1 + with_memory, squeeze=False, sharey=True)
    seconds = table["seconds"].to_numpy()
    spread = np.stack([seconds - table["seconds_min"], table["seconds_max"] - seconds])
    axes[0, 0].barh(places, seconds, height=0.65, color=BLUE, xerr=spread, ecolor=MUTED)
    _bar_numbers(axes[0, 0], places, table["seconds_max"].to_numpy(), seconds)
    axes[0, 0].set(yticks=places, yticklabels=names, xlabel="seconds (median; whisker: all rounds)")
    if with_memory:
        memory = table["peak_memory_bytes"].to_numpy() / 1e6
        axes[0, 1].barh(places, memory, height=0.65, color=ORANGE)
        _bar_numbers(axes[0, 1], places, memory, memory)
        axes[0, 1].set(xlabel="peak memory of the work (MB)")
    _headline(fig, title or "Time and memory, side by side")
    return fig


def _bar_numbers(ax, places, ends, values) -> None:
    """Each bar's value to the right of its end."""
    ax.set_xlim(0, 1.18 * max(np.nanmax(ends), 1e-9))
    for y, end, value in zip(places, np.nan_to_num(ends), values, strict=True):
        text = number(value) if value >= 1 else f"{value:.3g}" if value >= 0 else "no result"
        ax.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)


@_styled
def cost_bars(frame, *, title: str | None = None) -> Figure:
    """Where the seconds of each run went, stacked. frame: ``label`` and a column of seconds for each step.

    An optional column ``group`` (a data set) sets bars apart under a heading.
    """
    steps = [column for column in frame.columns if column not in ("label", "group")]
    places, heads = _places(frame)
    totals = frame[steps].fillna(0).sum(axis=1)
    divisor, symbol = time_unit(float(totals.max()) if len(totals) else 0.0)
    fig, ax = _canvas(8.4, 0.34 * (places.max(initial=0) + 1) + 1.6)
    start = np.zeros(len(frame))
    for step, colour in zip(steps, (GREEN, SKY, BLUE, ORANGE, PINK, MUTED), strict=False):
        seconds = np.nan_to_num(np.asarray(frame[step], float)) / divisor
        ax.barh(places, seconds, left=start, color=colour, edgecolor="white", label=step)
        start = start + seconds
    for place, total in zip(places, start, strict=True):
        ax.text(total, place, f" {number(total)} {symbol}", va="center", fontsize=8)
    ax.set(xlabel=f"time ({symbol})", xlim=(0, max(start.max(initial=0) * 1.14, 1e-9)))
    _name_bars([ax], places, heads, list(frame["label"]))
    ax.legend(ncols=len(steps), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    _headline(fig, title or "Cost of each run")
    return fig


# Illustrations

_STAGES = (
    ("01", "Cluster", "embed instructions,\nK-Means, k = 10", "data set"),
    ("02", "IFD", "answer perplexity with\nand without instruction", "data × model"),
    ("03", "Sample", "CDAS: hardest 40%\nof every cluster", "data × model\n× policy"),
    ("04", "Train", "Dynamic Pack in the\nHugging Face Trainer", "run"),
    ("05", "Evaluate", "greedy pass@1 judged\nby EvalPlus", "run"),
    ("06", "Tables", "RQ1, RQ2, figures,\nreport", "profile"),
)


@_styled
def pipeline_diagram() -> Figure:
    """The six notebooks from instruction data to tables, with what each does and how often it runs."""
    fig, ax = _canvas(11.4, 2.55)
    ax.set(xlim=(-1.0, 6.0), ylim=(-0.5, 1.75))
    ax.axis("off")
    _box(ax, -0.96, "Data", "instructions and\nanswers, base model", FAINT, INK)
    for i, (number_, name, what, per) in enumerate(_STAGES):
        colour = (BLUE, BLUE, BLUE, RED, GREEN, GREEN)[i]
        _box(ax, i + 0.04, f"{number_}  {name}", what, colour, "white")
        ax.text(i + 0.5, 0.04, f"once per {per}", ha="center", va="top", fontsize=8, color=MUTED)
        arrow = FancyArrowPatch((i - 0.05, 0.55), (i + 0.05, 0.55), arrowstyle="-|>", mutation_scale=10, color=INK)
        ax.add_patch(arrow)
    for left, right, name, colour in (
        (0, 3, "CDAS: which data", BLUE),
        (3, 4, "how it is batched", RED),
        (4, 6, "what came of it", GREEN),
    ):
        ax.plot([left + 0.05, right - 0.05], [1.42] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        ax.text((left + right) / 2, 1.49, name, ha="center", va="bottom", color=colour, fontweight="bold")
    return fig


def _box(ax, left: float, head: str, body: str, colour: str, ink: str) -> None:
    shape = "round,pad=0,rounding_size=0.06"
    for bottom, height, face in ((0.14, 1.12, "white"), (0.92, 0.34, colour)):
        patch = {"boxstyle": shape, "facecolor": face, "edgecolor": colour, "linewidth": 1.4}
        ax.add_patch(FancyBboxPatch((left, bottom), 0.92, height, **patch))
    ax.text(left + 0.46, 1.09, head, ha="center", va="center", color=ink, fontweight="bold", fontsize=9.5)
    ax.text(left + 0.46, 0.53, body, ha="center", va="center", fontsize=7.6, linespacing=1.35)


@_styled
def cdas_illustration(seed: int = 0) -> Figure:
    """CDAS in its three steps on 48 made-up instructions: cluster, score, keep the hardest 40% of each cluster."""
    from codeact_lib.sampling import cdas_sample  # imports pandas, which the other figures do not need

    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(4), 12)
    centres = np.array([[0, 0], [2.6, 0.5], [0.6, 2.4], [3.0, 2.8]])
    points = centres[cluster] + rng.normal(0, 0.42, (48, 2))
    ifd = np.clip(rng.normal(0.62, 0.2, 48), 0.15, 0.97)
    ifd[[5, 29]] = 1.06, 1.12  # two whose instruction does not help
    keep = np.isin(np.arange(48), cdas_sample(ifd, cluster, 0.4))
    fig, axes = _canvas(10.4, 3.5, 1, 3)
    _cdas_panels(axes, points, cluster, ifd, keep)
    return fig


def _cdas_panels(axes, points, cluster, ifd, keep) -> None:
    colours = np.array(PALETTE[:4])[cluster]
    axes[0].scatter(*points.T, c=colours, s=26)
    axes[0].set_title("1  Cluster the instructions")
    axes[0].set(xlabel="embedding, two components", xticks=[], yticks=[])
    order = np.lexsort((-ifd, cluster))
    bars = np.where(ifd >= 1, RED, colours)[order]
    axes[1].bar(range(48), ifd[order], color=bars, width=0.8)
    axes[1].axhline(1, color=INK, linewidth=1, linestyle="--")
    axes[1].set_title("2  Score and rank by IFD")
    axes[1].set(xlabel="samples, cluster by cluster", ylabel="IFD (red: ≥ 1, dropped)", xticks=[])
    axes[2].scatter(*points[~keep].T, c=FAINT, s=22)
    axes[2].scatter(*points[keep].T, c=colours[keep], s=34, edgecolors=INK, linewidths=0.9)
    axes[2].set_title(f"3  Keep the hardest 40%: {keep.sum()} of {len(keep)}")
    axes[2].set(xlabel="kept (outlined) from every cluster", xticks=[], yticks=[])
