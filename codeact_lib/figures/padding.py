"""Figures of stage 04: rows of a batch, padding rates, losses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from codeact_lib.figures.results import _name_bars, _places
from codeact_lib.figures.style import BLUE, FAINT, GREEN, INK, MUTED, PALETTE, RED, _canvas, _headline, _styled
from codeact_lib.packing.plan import plan_rows

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
