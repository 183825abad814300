"""The two drawings that explain: the pipeline, and CDAS on points."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from codeact_lib.figures import style
from codeact_lib.sampling import cdas_sample

# What each notebook does and how often it runs.
_STAGES = (
    ("Data", "instructions and\nanswers, base model", "", style.FAINT),
    ("01  Cluster", "embed instructions,\nK-Means, k = 10", "data set", style.BLUE),
    ("02  IFD", "answer perplexity with\nand without instruction", "data × model", style.BLUE),
    ("03  Sample", "CDAS: hardest 40%\nof every cluster", "data × model\n× policy", style.BLUE),
    ("04  Train", "Dynamic Pack in the\nHugging Face Trainer", "run", style.RED),
    ("05  Evaluate", "greedy pass@1 judged\nby EvalPlus", "run", style.GREEN),
    ("06  Tables", "RQ1, RQ2, figures,\nreport", "profile", style.GREEN),
)
_QUESTIONS = (
    (0, 3, "CDAS: which data", style.BLUE),
    (3, 4, "how it is batched", style.RED),
    (4, 6, "what came of it", style.GREEN),
)


@style.styled()
def pipeline_diagram() -> Figure:
    """The six notebooks from instruction data to tables, with what each does and how often it runs."""
    fig, ax = style.canvas(11.4, 2.55)
    ax.set(xlim=(-1.0, 6.0), ylim=(-0.5, 1.75))
    ax.axis("off")
    middle = {"ha": "center", "va": "center"}
    for i, (head, body, per, colour) in enumerate(_STAGES, start=-1):
        left = i + 0.04
        for bottom, height, face in ((0.14, 1.12, "white"), (0.92, 0.34, colour)):
            look = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": face, "edgecolor": colour}
            ax.add_patch(FancyBboxPatch((left, bottom), 0.92, height, linewidth=1.4, **look))
        ink = "white" if per else style.INK
        ax.text(left + 0.46, 1.09, head, color=ink, fontweight="bold", fontsize=9.5, **middle)
        ax.text(left + 0.46, 0.53, body, fontsize=7.6, linespacing=1.35, **middle)
        if per:
            ax.text(i + 0.5, 0.04, f"once per {per}", ha="center", va="top", fontsize=8, color=style.MUTED)
            ends = ((i - 0.05, 0.55), (i + 0.05, 0.55))
            ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=10, color=style.INK))
    for start, stop, name, colour in _QUESTIONS:
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
    ifd[[5, 29]] = [1.06, 1.12]  # two whose instruction does not help
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
