"""Figures of stage 04: rows of a batch, padding rates, losses."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from codeact_lib.figures import style
from codeact_lib.packing.plan import Rows, plan_rows

OUTLINED = 64  # single slots are outlined up to this model length: beyond it they are too narrow to be seen


@style.styled
def padding_illustration(lengths: Iterable[int], max_length: int, *, rows: Mapping[str, Rows] | None = None) -> Figure:
    """The padding strategies drawn as grids of token slots: coloured = a sample's tokens, blank = padding.

    lengths: tokens of each sample in one batch. rows: strategy -> rows of sample indices; by default what
    `packing.plan_rows` plans for the paper's three (CodeACT, figure 2). Every row is as wide as the strategy pads it.
    """
    lengths = [int(length) for length in lengths]
    if rows is None:
        rows = {name: plan_rows(lengths, max_length, name) for name in ("traditional", "dynamic", "dynamic_pack")}
    heights = [len(planned) + 1.1 for planned in rows.values()]
    fig, axes = style.canvas(
        7.6, 0.24 * sum(heights) + 0.5, len(rows), 1, squeeze=False, height_ratios=heights, sharex=True
    )
    widths = []
    for ax, (strategy, planned) in zip(axes[:, 0], rows.items(), strict=True):
        widths.append(_slot_grid(ax, strategy, planned, lengths, max_length))
    axes[-1, 0].set_xlabel(f"token slots (the model's maximum is {max_length:,})")
    axes[-1, 0].set_xlim(0, 1.005 * max(widths))
    return fig


def _slot_grid(ax: Axes, strategy: str, planned: Rows, lengths: list[int], max_length: int) -> int:
    """Draw one strategy's rectangle and return its width."""
    used = [sum(lengths[i] for i in row) for row in planned]
    width = max_length if strategy == "traditional" else max(used)
    for y, row in enumerate(planned):
        ax.add_patch(Rectangle((0, y), width, 0.86, facecolor="white", edgecolor=style.FAINT, linewidth=0.8))
        start = 0
        for i in row:
            _sample_block(ax, start, y, i, lengths[i], max_length)
            start += lengths[i]
    if max_length <= OUTLINED:
        ax.vlines(np.arange(1, width), 0, len(planned) - 0.14, color=style.FAINT, linewidth=0.8)
    total = width * len(planned)
    name = style.STRATEGY_NAMES.get(strategy, strategy)
    count = f"{len(planned)} row{'s' * (len(planned) != 1)}"
    ax.set_title(f"{name}: {count} × {width:,} = {total:,} slots, {1 - sum(used) / total:.0%} padding", pad=3)
    ax.set(ylim=(len(planned), -0.1), yticks=[])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(bottom=False)
    return width


def _sample_block(ax: Axes, start: int, y: int, sample: int, length: int, max_length: int) -> None:
    """The slots of one sample, with its number where there is room for it."""
    colour = style.PALETTE[sample % 6]
    ax.add_patch(Rectangle((start, y), length, 0.86, facecolor=colour, edgecolor="white", linewidth=1.4))
    if length > max_length / 45:
        x = start + (0.5 if max_length <= OUTLINED else length / 2)  # inside one slot where slots are outlined
        ink = "white" if colour in (style.BLUE, style.GREEN, style.RED) else style.INK
        ax.text(x, y + 0.47, str(sample + 1), ha="center", va="center", fontsize=8, color=ink, fontweight="bold")


@style.styled
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
    colours = np.where(packed, style.BLUE, style.MUTED)
    with_attention = "attention_pairs" in report
    size = (6.8 + 2.8 * with_attention, 0.36 * (places.max(initial=0) + 1) + 1.2)
    fig, axes = style.canvas(*size, 1, 1 + with_attention, squeeze=False, sharey=True)
    _rate_bars(axes[0, 0], places, rates, colours, "%")
    axes[0, 0].set(xlabel="padding (% of token slots)", xlim=(0, max(rates.max(initial=1) * 1.15, 1)))
    if with_attention:
        costs = np.asarray(report["attention_pairs"], float) / np.asarray(report["isolated_pairs"], float)
        _rate_bars(axes[0, 1], places, costs, colours, "×")
        axes[0, 1].set(xlabel="attention over whole rows (× inside samples)", xlim=(0, costs.max(initial=1) * 1.2))
    style.name_bars(axes[0], places, heads, names)
    style.headline(fig, title or f"Padding falls from {rates.max():.0f}% to {rates.min():.0f}% of the slots")
    return fig


def _rate_bars(ax: Axes, places: np.ndarray, values: np.ndarray, colours: np.ndarray, symbol: str) -> None:
    ax.barh(places, values, color=colours, height=0.68)
    for place, value in zip(places, values, strict=True):
        ax.text(value, place, f" {value:.1f}{symbol}", va="center", fontsize=8.5)


@style.styled
def loss_curves(curves: Mapping[str, Sequence[Any]], *, title: str | None = None) -> Figure:
    """Training loss over optimizer steps. curves: label -> [(step, loss)] or [{"step": .., "loss": ..}].

    The faint line is what was logged, the strong one its running mean over a twentieth of the curve.
    """
    fig, ax = style.canvas(6.8, 3.7)
    for (label, points), colour in zip(curves.items(), cycle(style.PALETTE), strict=False):
        pairs = [(p["step"], p["loss"]) if isinstance(p, Mapping) else tuple(p)[:2] for p in points]
        steps, losses = np.array(pairs, float).reshape(-1, 2).T
        ax.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        mean = running_mean(losses, max(1, len(losses) // 20))
        marker = "o" if len(losses) == 1 else None  # a line through one point would not be seen
        ax.plot(steps, mean, label=label, color=colour, linewidth=1.7, marker=marker)
    ax.grid(axis="y")
    ax.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
    ax.set_ylim(bottom=0)
    ax.set_title(title or "Training loss")
    if any(curves):
        ax.legend()
    return fig


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over about `window` values centred on each point, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    starts = np.maximum(places - window // 2, 0)
    stops = np.minimum(places + window // 2 + 1, len(values))
    return (sums[stops] - sums[starts]) / (stops - starts)
