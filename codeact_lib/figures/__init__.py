"""All plots of the project in one style: plain arrays or frames in, a matplotlib `Figure` out.

from codeact_lib import figures
fig = figures.cluster_map(x, y, labels)      # the last line of a notebook cell shows it as PNG
figures.save_figure(fig, "figures/clusters") # writes .svg, .pdf and .png, the same bytes each time
"""

from codeact_lib.figures.illustrations import cdas_illustration, padding_illustration, pipeline_diagram
from codeact_lib.figures.results import (
    cost_bars,
    data_efficiency,
    loss_curves,
    padding_rates,
    pass_at_one_bars,
    sampling_rate_curve,
    time_memory_bars,
)
from codeact_lib.figures.selection import cluster_map, ifd_against_length, ifd_histogram, selection_bars
from codeact_lib.figures.style import save_figure
