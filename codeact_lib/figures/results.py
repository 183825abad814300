"""Figures of stage 06: pass@1, seconds and memory by arm, sampling rates, costs, benches."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from codeact_lib.figures.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PALETTE,
    PINK,
    SKY,
    _canvas,
    _headline,
    _styled,
    memory_unit,
    number,
    time_unit,
)

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

    ``table`` is what ``bench.harness.compare`` returns.
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
