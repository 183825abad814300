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


@style.styled()
def padding_illustration(lengths: Iterable[int], max_length: int) -> Figure:
    """The paper's three padding strategies as grids of token slots: coloured = a sample's tokens, blank = padding.

    lengths: tokens of each sample in one batch, which `packing.plan_rows` lays out (CodeACT, figure 2). Every row is as
    wide as the strategy pads it.
    """
    lengths = list(map(int, lengths))
    rows = {name: plan_rows(lengths, max_length, name) for name in ("traditional", "dynamic", "dynamic_pack")}
    heights = [len(planned) + 1.1 for planned in rows.values()]
    size = (7.6, 0.24 * sum(heights) + 0.5)
    fig, axes = style.canvas(*size, len(rows), squeeze=False, height_ratios=heights, sharex=True)
    widest = 0
    for ax, (strategy, planned) in zip(axes[:, 0], rows.items(), strict=True):
        widest = max(widest, _slot_grid(ax, strategy, planned, lengths, max_length))
    axes[-1, 0].set_xlabel(f"token slots (the model's maximum is {max_length:,})")
    axes[-1, 0].set_xlim(0, 1.005 * widest)
    return fig


def _slot_grid(ax: Axes, strategy: str, planned: Rows, lengths: list[int], max_length: int) -> int:
    # Draw one strategy's rectangle and return its width.
    used = [sum(lengths[i] for i in row) for row in planned]
    width = max_length if strategy == "traditional" else max(used)
    for y, row in enumerate(planned):
        ax.add_patch(Rectangle((0, y), width, 0.86, facecolor="white", edgecolor=style.FAINT, linewidth=0.8))
        start = 0
        for i in row:
            colour = style.PALETTE[i % 6]
            block = {"facecolor": colour, "edgecolor": "white", "linewidth": 1.4}
            ax.add_patch(Rectangle((start, y), lengths[i], 0.86, **block))
            if lengths[i] > max_length / 45:  # else there is no room for its number
                # inside one slot where slots are outlined
                x = start + (0.5 if max_length <= OUTLINED else lengths[i] / 2)
                ink = "white" if colour in (style.BLUE, style.GREEN, style.RED) else style.INK
                look = {"ha": "center", "va": "center", "fontsize": 8, "color": ink, "fontweight": "bold"}
                ax.text(x, y + 0.47, str(i + 1), **look)
            start += lengths[i]
    if max_length <= OUTLINED:
        ax.vlines(np.arange(1, width), 0, len(planned) - 0.14, color=style.FAINT, linewidth=0.8)
    total = width * len(planned)
    count = f"{len(planned)} row{'s' * (len(planned) != 1)}"
    slots = f"{count} × {width:,} = {total:,} slots, {1 - sum(used) / total:.0%} padding"
    ax.set_title(f"{style.STRATEGY_NAMES[strategy]}: {slots}", pad=3)
    ax.set(ylim=(len(planned), -0.1), yticks=[])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(bottom=False)
    return width


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
def loss_curves(curves: Mapping[str, Sequence[Any]], *, title: str = "Training loss") -> Figure:
    """Training loss over optimizer steps. curves: label -> [(step, loss)] or [{"step": .., "loss": ..}]."""
    fig, ax = style.canvas(6.8, 3.7)
    for (label, points), colour in zip(curves.items(), cycle(style.PALETTE), strict=False):
        pairs = [(p["step"], p["loss"]) if isinstance(p, Mapping) else tuple(p)[:2] for p in points]
        steps, losses = np.array(pairs, float).reshape(-1, 2).T
        # faint what was logged, strong its running mean over a twentieth of the curve: the loss of one step is mostly
        # that of its samples
        ax.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        around = 2 * (len(losses) // 20 // 2) + 1  # points, centred; fewer at the ends
        mean = pd.Series(losses).rolling(around, center=True, min_periods=1).mean()
        marker = "o" if len(losses) == 1 else None  # a line through one point would not be seen
        ax.plot(steps, mean, label=label, color=colour, linewidth=1.7, marker=marker)
    ax.grid(axis="y")
    ax.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
    ax.set_ylim(bottom=0)
    ax.set_title(title)
    if any(curves):
        ax.legend()
    return fig
