"""The figure of a bench, in the style of all others; apart from the harness, which also runs without matplotlib."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codeact_lib.figures import style
from codeact_lib.measure import number


@style.styled()
def bench_bars(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Median seconds of each contender in a table of `harness.compare`, and its peak memory if known."""
    places = np.arange(len(table))[::-1]
    slowest = table["seconds_max"]
    spread = np.stack([table["seconds"] - table["seconds_min"], slowest - table["seconds"]])
    look = {"color": style.BLUE, "xerr": spread, "ecolor": style.MUTED}
    panels = [(table["seconds"], slowest, "seconds (median; whisker: all rounds)", look)]
    if "peak_memory_bytes" in table and (table["peak_memory_bytes"] > 0).any():
        memory = table["peak_memory_bytes"] / 1e6
        panels.append((memory, memory, "peak memory of the work (MB)", {"color": style.ORANGE}))
    fig, axes = style.canvas(9.0, 1.3 + 0.3 * len(table), 1, len(panels), squeeze=False, sharey=True)
    for ax, (values, ends, xlabel, look) in zip(axes[0], panels, strict=True):
        ax.barh(places, values, height=0.65, **look)
        ax.set(xlabel=xlabel, xlim=(0, 1.18 * max(np.nanmax(ends), 1e-9)))
        for y, end, value in zip(places, ends.fillna(0), values, strict=True):
            text = number(value) if value >= 1 else f"{value:.3g}".replace("nan", "no result")
            ax.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes[0, 0].set(yticks=places, yticklabels=table["contender"])
    style.headline(fig, title or "Time and memory, side by side")
    return fig
