"""All plots of the project in one style: plain arrays or frames in, a matplotlib `Figure` out.

from codeact_lib import figures
fig = figures.cluster_map(x, y, labels)      # the last line of a notebook cell shows it as PNG
figures.save_figure(fig, "figures/clusters") # writes .svg, .pdf and .png, the same bytes each time
"""

from codeact_lib.figures.illustrations import cdas_illustration, pipeline_diagram
from codeact_lib.figures.padding import loss_curves, padding_illustration, padding_rates
from codeact_lib.figures.results import (
    bench_bars,
    cost_bars,
    data_efficiency,
    pass_at_one_bars,
    sampling_rate_curve,
    time_memory_bars,
)
from codeact_lib.figures.selection import cluster_map, ifd_against_length, ifd_histogram, selection_bars
from codeact_lib.figures.style import save_figure
from codeact_lib.measure import memory_unit, number, time_unit

__all__ = [
    "bench_bars",
    "cdas_illustration",
    "cluster_map",
    "cost_bars",
    "data_efficiency",
    "ifd_against_length",
    "ifd_histogram",
    "loss_curves",
    "memory_unit",
    "number",
    "padding_illustration",
    "padding_rates",
    "pass_at_one_bars",
    "pipeline_diagram",
    "sampling_rate_curve",
    "save_figure",
    "selection_bars",
    "time_memory_bars",
    "time_unit",
]
