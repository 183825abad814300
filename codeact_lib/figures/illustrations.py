"""The three drawings that explain: the pipeline, CDAS on points, and padding in slots."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from codeact_lib.figures import style
from codeact_lib.packing.plan import Rows, plan_rows
from codeact_lib.sampling import cdas_sample

OUTLINED = 64  # single slots are outlined up to this model length: beyond it they are too narrow to be seen


@style.styled()
def pipeline_diagram() -> Figure:
    """The six notebooks from instruction data to tables, with what each does and how often it runs."""
    drawn = yaml.safe_load(Path(__file__).with_name("pipeline.yaml").read_text(encoding="utf-8"))
    fig, ax = style.canvas(11.4, 2.55)
    ax.set(xlim=(-1.0, 6.0), ylim=(-0.5, 1.75))
    ax.axis("off")
    middle = {"ha": "center", "va": "center"}
    # a box is one wide and the first notebook starts at 0: the data, which are no notebook, stand left of it
    for i, (head, body, per, colour_name) in enumerate(drawn["stages"], start=-1):
        left = i + 0.04
        colour = getattr(style, colour_name)
        for bottom, height, face in ((0.14, 1.12, "white"), (0.92, 0.34, colour)):
            look = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": face, "edgecolor": colour}
            ax.add_patch(FancyBboxPatch((left, bottom), 0.92, height, linewidth=1.4, **look))
        heading = ax.text(left + 0.46, 1.09, head, color="white", fontweight="bold", fontsize=9.5, **middle)
        ax.text(left + 0.46, 0.53, body, fontsize=7.6, linespacing=1.35, **middle)
        if not per:
            heading.set_color(style.INK)  # on the grey of the data white could not be read
        else:
            ax.text(i + 0.5, 0.04, f"once per {per}", ha="center", va="top", fontsize=8, color=style.MUTED)
            ends = ((i - 0.05, 0.55), (i + 0.05, 0.55))
            ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=10, color=style.INK))
    for start, stop, name, colour_name in drawn["questions"]:
        colour = getattr(style, colour_name)
        ax.plot([start + 0.05, stop - 0.05], [1.42] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        ax.text((start + stop) / 2, 1.49, name, ha="center", va="bottom", color=colour, fontweight="bold")
    return fig


@style.styled()
def cdas_illustration() -> Figure:
    """CDAS in its three steps on 48 made-up instructions: cluster, score, keep the hardest 40% of each cluster."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(4), 12)
    centres = np.array([[0, 0], [2.6, 0.5], [0.6, 2.4], [3.0, 2.8]])
    points = centres[cluster] + rng.normal(0, 0.42, (48, 2))
    ifd = np.clip(rng.normal(0.62, 0.2, 48), 0.15, 0.97)
    # two whose instruction does not help: nearly every real set has such rows, and CDAS drops them
    ifd[[5, 29]] = [1.06, 1.12]
    keep = np.isin(np.arange(48), cdas_sample(ifd, cluster, 0.4))
    colours = np.array(style.PALETTE[:4])[cluster]

    fig, axes = style.canvas(10.4, 3.5, 1, 3)
    axes[0].scatter(*points.T, c=colours, s=26)
    axes[0].set_title("1  Cluster the instructions")
    axes[0].set(xlabel="embedding, two components", xticks=[], yticks=[])
    order = np.lexsort((-ifd, cluster))
    bars = np.where(ifd >= 1, style.RED, colours)[order]
    axes[1].bar(range(48), ifd[order], color=bars, width=0.8)
    axes[1].axhline(1, color=style.INK, linewidth=1, linestyle="--")
    axes[1].set_title("2  Score and rank by IFD")
    axes[1].set(xlabel="samples, cluster by cluster", ylabel="IFD (red: ≥ 1, dropped)", xticks=[])
    axes[2].scatter(*points[~keep].T, c=style.FAINT, s=22)
    axes[2].scatter(*points[keep].T, c=colours[keep], s=34, edgecolors=style.INK, linewidths=0.9)
    axes[2].set_title(f"3  Keep the hardest 40%: {keep.sum()} of {len(keep)}")
    axes[2].set(xlabel="kept (outlined) from every cluster", xticks=[], yticks=[])
    return fig


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
    for ax, (strategy, planned) in zip(axes[:, 0], rows.items(), strict=True):
        _slot_grid(ax, strategy, planned, lengths, max_length)
    axes[-1, 0].set_xlabel(f"token slots (the model's maximum is {max_length:,})")
    # traditional padding, the widest, is as wide as the model: one scale, so that widths compare over the panels
    axes[-1, 0].set_xlim(0, 1.005 * max_length)
    return fig


def _slot_grid(ax: Axes, strategy: str, planned: Rows, lengths: list[int], max_length: int) -> None:
    used = [sum(lengths[i] for i in row) for row in planned]
    width = max_length if strategy == "traditional" else max(used)
    for y, row in enumerate(planned):
        ax.add_patch(Rectangle((0, y), width, 0.86, facecolor="white", edgecolor=style.FAINT, linewidth=0.8))
        start = 0
        for i in row:
            colour = style.PALETTE[i % 6]
            block = {"facecolor": colour, "edgecolor": "white", "linewidth": 1.4}
            ax.add_patch(Rectangle((start, y), lengths[i], 0.86, **block))
            # below a 45th of the axis there is no room for its number
            if lengths[i] > max_length / 45:
                # in its first slot where slots are outlined: a line would cross a number in the middle
                x = start + (0.5 if max_length <= OUTLINED else lengths[i] / 2)
                # the dark ones of the six colours; on the others white has too little contrast
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
