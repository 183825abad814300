"""Figures of stages 04 to 06: padding, losses, pass@1, seconds and memory by arm, sampling rates, costs.

Where bars are drawn, an optional column `group` of the frame (a data set) sets them apart under a heading.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from operator import itemgetter
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codeact_lib.figures import style
from codeact_lib.measure import memory_unit, number, time_unit


def arm_colours(labels: Sequence[str]) -> dict[str, str]:
    """An arm keeps its colour over all figures; CDAS at another rate is one kind; others take the colours left."""
    taken = {*style.ARM_COLOURS.values(), style.SKY}
    left = cycle(colour for colour in style.PALETTE if colour not in taken)
    colours = dict(style.ARM_COLOURS)
    for label in dict.fromkeys(labels):
        if label.startswith("CDAS ") and label.endswith("%"):
            colours[label] = style.SKY
        elif label not in colours:
            colours[label] = next(left)
    return colours


@style.styled()
def pass_at_one_bars(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """pass@1 with its 95% interval, one panel a benchmark, one bar a label.

    frame: one row a bar with `label`, `benchmark`, `k`, `n`, `low`, `high` (fractions 0..1). Of several seeds `rate`
    and `sd` (fractions) are their mean and spread, printed in place of k/n. Each benchmark needs the same labels in the
    same order.
    """
    parts = dict(list(frame.groupby("benchmark", sort=False)))
    first = next(iter(parts.values()))
    places, heads = style.bar_places(first)
    columns = min(2, len(parts))
    rows = -(-len(parts) // 2)
    size = (5.0 * columns + 0.8, rows * (0.30 * (places.max(initial=0) + 1.5) + 0.9))
    fig, axes = style.canvas(*size, rows, columns, squeeze=False, sharey=True)
    colours = arm_colours(frame["label"])
    for ax, (benchmark, part) in zip(axes.flat, parts.items(), strict=False):
        for y, row in zip(places, part.to_dict("records"), strict=True):
            _interval_bar(ax, y, row, colours[row["label"]])
        # beyond 100% the numbers of the longest bars stand
        ax.set(xlim=(0, 124), xticks=range(0, 101, 20))
        ax.spines["bottom"].set_bounds(0, 100)
        ax.grid(axis="x")
        ax.set_title(benchmark)
    style.name_bars(axes.flat[: len(parts)], places, heads, first["label"])
    for ax in axes.flat[len(parts) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("pass@1 (%), black line: 95% interval")
    style.headline(fig, title or "pass@1 by arm")
    return fig


def _interval_bar(ax: Axes, y: float, row: dict[str, Any], colour: str) -> None:
    if np.isfinite(row.get("sd", np.nan)):
        rate = 100 * row["rate"]
        text = f"{rate:.1f} ± {100 * row['sd']:.1f}"
    else:
        rate = 100 * (row["k"] / row["n"])
        text = f"{rate:.1f} ({row['k']}/{row['n']})"
    high = 100 * row["high"]
    ax.barh(y, rate, color=colour, height=0.7, alpha=0.85)
    ax.plot([100 * row["low"], high], [y, y], color=style.INK, linewidth=1.3)
    ax.text(max(high, rate) + 1.5, y, text, va="center", fontsize=8)


@style.styled()
def time_memory_bars(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Training time and peak memory side by side. frame: `label`, `seconds`, `memory_bytes` (NaN: not measured)."""
    labels = [str(label) for label in frame["label"]]
    colours = arm_colours(labels)
    places, heads = style.bar_places(frame)
    fig, axes = style.canvas(9.6, 0.30 * (places.max(initial=0) + 1.5) + 1.1, 1, 2, sharey=True)
    panels = (("seconds", time_unit, "training time"), ("memory_bytes", memory_unit, "peak memory"))
    for ax, (column, unit, name) in zip(axes, panels, strict=True):
        values = np.asarray(frame[column], float)
        lengths = np.nan_to_num(values)
        divisor, symbol = unit(lengths.max(initial=0.0))
        ax.barh(places, lengths / divisor, color=[colours[label] for label in labels], height=0.7, alpha=0.85)
        for place, value in zip(places, values / divisor, strict=True):
            text = f" {number(value)} {symbol}" if np.isfinite(value) else " not measured"
            ax.text(np.nan_to_num(value), place, text, va="center", fontsize=8)
        ax.set_xlim(0, max((lengths / divisor).max(initial=0) * 1.28, 1e-9))
        ax.set_xlabel(f"{name} ({symbol})")
    style.name_bars(axes, places, heads, labels)
    style.headline(fig, title or "Training time and peak memory")
    return fig


@style.styled()
def cost_bars(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Where the seconds of each run went, stacked. frame: `label` and a column of seconds for each step."""
    steps = [column for column in frame.columns if column not in ("label", "group")]
    places, heads = style.bar_places(frame)
    totals = frame[steps].fillna(0).sum(axis=1)
    # one unit for all bars, that of the longest: hours beside seconds could not be stacked
    divisor, symbol = time_unit(totals.to_numpy().max(initial=0.0))
    fig, ax = style.canvas(8.4, 0.34 * (places.max(initial=0) + 1) + 1.6)
    start = np.zeros(len(frame))
    colours = (style.GREEN, style.SKY, style.BLUE, style.ORANGE, style.PINK, style.MUTED)
    for step, colour in zip(steps, colours, strict=False):
        seconds = np.nan_to_num(np.asarray(frame[step], float)) / divisor
        ax.barh(places, seconds, left=start, color=colour, edgecolor="white", label=step)
        start = start + seconds
    for place, total in zip(places, start, strict=True):
        ax.text(total, place, f" {number(total)} {symbol}", va="center", fontsize=8)
    ax.set(xlabel=f"time ({symbol})", xlim=(0, max(start.max(initial=0) * 1.14, 1e-9)))
    style.name_bars([ax], places, heads, frame["label"])
    style.legend_on_top(ax, ncols=len(steps))
    style.headline(fig, title or "Cost of each run")
    return fig


@style.styled()
def padding_rates(report: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Share of token slots that are padding. report: one row a bar with `strategy`, `padding_rate` (0..1).

    An optional column `group` (a data set) sets bars apart under a heading. Where the report has `attention_pairs` and
    `isolated_pairs` (`packing.padding_report`), a second panel shows what attention over whole rows costs, in multiples
    of attention inside each sample.
    """
    rates = 100 * np.asarray(report["padding_rate"], float)
    places, heads = style.bar_places(report)
    names = [style.STRATEGY_NAMES.get(name, str(name)) for name in report["strategy"]]
    packed = [name == style.STRATEGY_NAMES["flat"] or "pack" in name.lower() for name in names]
    panels = [(rates, "%", "padding (% of token slots)", max(rates.max(initial=1) * 1.15, 1))]
    if "attention_pairs" in report:
        costs = np.asarray(report["attention_pairs"], float) / np.asarray(report["isolated_pairs"], float)
        panels.append((costs, "×", "attention over whole rows (× inside samples)", costs.max(initial=1) * 1.2))
    size = (4.0 + 2.8 * len(panels), 0.36 * (places.max(initial=0) + 1) + 1.2)
    fig, axes = style.canvas(*size, 1, len(panels), squeeze=False, sharey=True)
    for ax, (values, symbol, xlabel, right) in zip(axes[0], panels, strict=True):
        ax.barh(places, values, color=np.where(packed, style.BLUE, style.MUTED), height=0.68)
        for place, value in zip(places, values, strict=True):
            ax.text(value, place, f" {value:.1f}{symbol}", va="center", fontsize=8.5)
        ax.set(xlabel=xlabel, xlim=(0, right))
    style.name_bars(axes[0], places, heads, names)
    style.headline(fig, title or f"Padding falls from {rates.max():.0f}% to {rates.min():.0f}% of the slots")
    return fig


@style.styled()
def data_efficiency(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """HumanEval against the number of training samples, one panel a source: nothing is compared across sources.

    panels: heading -> frame with `label`, `samples`, `pass_at_one` (%), `ours` (bool), optional low/high (%).
    """
    # as high as the longest list of names at the side
    height = max(3.6, 0.2 * max(map(len, panels.values())) + 1.6)
    fig, axes = style.canvas(4.6 * len(panels) + 0.4, height, 1, len(panels), squeeze=False)
    for ax, (heading, frame) in zip(axes[0], panels.items(), strict=True):
        _efficiency_panel(ax, frame.to_dict("records"))
        ax.set(title=heading, xlabel="training samples (logarithmic)", ylabel="HumanEval pass@1 (%)")
    return fig


def _efficiency_panel(ax: Axes, rows: list[dict[str, Any]]) -> None:
    samples = [row["samples"] for row in rows]
    for i, row in enumerate(rows):
        # About the same number of samples stand side by side (3% apart), so that no interval hides another.
        near = sum(abs(np.log(row["samples"] / other)) < 0.02 for other in samples[:i])
        row["x"] = row["samples"] * 1.03**near
        # shape and weight say the same as colour, for who cannot see it
        look = (style.MUTED, "s", "normal")
        if row["ours"]:
            look = (style.BLUE, "o", "bold")
        colour, marker, row["weight"] = look
        if np.isfinite(row.get("low", np.nan)):
            ax.plot([row["x"]] * 2, [row["low"], row["high"]], color=colour, linewidth=1)
        ax.plot(row["x"], row["pass_at_one"], marker, color=colour, markersize=6.5)
    ax.set_xscale("log")
    ax.set_xlim(min(samples) / 1.35, max(row["x"] for row in rows) * 1.2)
    # room above and below for names that are moved apart
    ax.margins(y=0.12)
    _side_labels(ax, rows)
    ticks = np.array([1, 2, 3, 5]) * 10.0 ** np.arange(9)[:, None]
    in_view = (ticks >= min(samples) / 1.3) & (ticks <= max(samples) * 1.3)
    ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(ticks[in_view]))
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(axis="y")


def _side_labels(ax: Axes, rows: list[dict[str, Any]]) -> None:
    # Names in a column on the right, in the order of their points, each led to its own by a faint line.
    from scipy.optimize import isotonic_regression

    rows = sorted(rows, key=itemgetter("pass_at_one"))
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    gap = (high - low) * min(0.06, 0.95 / max(len(rows), 1))
    # moved as little as possible (least squares) to stand a gap apart inside of the panel
    steps = gap * np.arange(len(rows))
    free = isotonic_regression(np.array([row["pass_at_one"] for row in rows], float) - steps).x
    heights = np.clip(free, low, high - gap / 2 - gap * (len(rows) - 1)) + steps
    line = {"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 3, "relpos": (0, 0.5)}
    for row, height in zip(rows, heights, strict=True):
        ax.annotate(
            row["label"],
            (row["x"], row["pass_at_one"]),
            (1.03, height),
            textcoords=ax.get_yaxis_transform(),
            arrowprops=dict(line),  # matplotlib takes keys out of it
            va="center",
            fontsize=8,
            fontweight=row["weight"],
            annotation_clip=False,
        )


@style.styled()
def sampling_rate_curve(frame: pd.DataFrame, scores: Mapping[str, str]) -> Figure:
    """pass@1 against the share of the data that was chosen, one panel a `setting`.

    frame: `setting`, `ratio` (0..1) and columns of means in %, which `scores` maps to their names (those that the frame
    lacks are left out); an optional `<column>_sd` draws the spread over seeds.
    """
    scores = {column: label for column, label in scores.items() if column in frame} or scores
    nothing = [("nothing was run", frame.reindex(columns=["ratio", *scores]))]
    panels = list(frame.groupby("setting", sort=False)) or nothing
    fig, axes = style.canvas(4.4 * len(panels) + 0.6, 3.6, 1, len(panels), squeeze=False, sharey=True)
    for ax, (name, part) in zip(axes[0], panels, strict=True):
        for (column, label), colour, marker in zip(scores.items(), style.PALETTE, "osD^v", strict=False):
            spread = part.get(f"{column}_sd")
            line = {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.4, "capsize": 2.5}
            ax.errorbar(100 * part["ratio"], part[column], yerr=spread, label=label, **line)
        ax.set_title(name)
        ax.set_xlabel("share of the data chosen (%), 100: all of it")
        ax.grid(axis="y")
    axes[0][0].set_ylabel("pass@1 (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), columnspacing=1.2, handlelength=1.6)
    style.headline(fig, "How much to choose")
    return fig


@style.styled()
def loss_curves(curves: Mapping[str, Sequence[Any]], *, title: str = "Training loss") -> Figure:
    """Training loss over optimizer steps. curves: label -> [(step, loss)] or [{"step": .., "loss": ..}]."""
    fig, ax = style.canvas(6.8, 3.7)
    for (label, points), colour in zip(curves.items(), cycle(style.PALETTE), strict=False):
        pairs = [(p["step"], p["loss"]) if isinstance(p, Mapping) else tuple(p)[:2] for p in points]
        steps, losses = np.array(pairs, float).reshape(-1, 2).T
        # faint what was logged, strong its running mean over a twentieth of the curve: the loss of one step is mostly
        # that of its samples
        ax.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        # an odd number of points, so that the mean stands in their middle; fewer at the ends
        around = 2 * (len(losses) // 20 // 2) + 1
        mean = pd.Series(losses).rolling(around, center=True, min_periods=1).mean()
        # a line through one point would not be seen
        marker = "o" if len(losses) == 1 else None
        ax.plot(steps, mean, label=label, color=colour, linewidth=1.7, marker=marker)
    ax.grid(axis="y")
    ax.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
    # from zero on: a cut axis makes a small difference between two arms look like a large one
    ax.set_ylim(bottom=0)
    ax.set_title(title)
    if any(curves):
        ax.legend()
    return fig
