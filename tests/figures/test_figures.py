"""Figures: the same bytes each time, what is drawn agrees with the numbers, nothing overlaps or leaves the page."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from codeact_lib import figures
from codeact_lib.figures import results, selection, style
from codeact_lib.measure import memory_unit, number, time_unit

RNG = np.random.default_rng(0)
CLUSTER = RNG.integers(0, 10, 300)
IFD = np.where(RNG.random(300) < 0.05, np.nan, RNG.normal(0.6, 0.2, 300).clip(0.05, 1.8))
SCORES = pd.DataFrame(
    [
        {"group": group, "label": label, "benchmark": benchmark, "k": k, "n": 160, "low": k / 170, "high": k / 150}
        for benchmark in ("HumanEval", "HumanEval+", "MBPP", "MBPP+")
        for group, label, k in (("none", "base model", 12), ("evol", "full data", 80), ("evol", "CodeACT", 77))
    ]
)
AVERAGED = SCORES.assign(k="12; 80; 77", rate=0.41234, sd=0.056)
COSTS = pd.DataFrame({"label": ["a", "b"], "embedding": [3.0, np.nan], "training": [40.0, 110.0]})
TRAININGS = pd.DataFrame(
    {"group": ["x", "x"], "label": ["full data", "CodeACT"], "seconds": [112.0, 39.0], "memory_bytes": [5e8, np.nan]}
)
POINTS = pd.DataFrame({"label": ["a", "b"], "samples": [960, 2400], "pass_at_one": [50.0, 55.0], "ours": [True, False]})
CURVE = pd.DataFrame({"setting": "one data set", "ratio": [0.1, 0.4, 1.0], "a": [40, 50, 55.0], "b": 50.0, "c": 60.0})
CURVE["a_sd"] = [np.nan, 2.0, 1.0]
LENGTHS = [4, 3, 5, 11, 7, 6]  # the six samples of the paper's second figure
CURVES = {"full": [(i, 1 / i) for i in range(1, 90)], "CodeACT": [{"step": 1, "loss": 2.0}]}
RATES = pd.DataFrame({"strategy": ["dynamic", "flat"], "padding_rate": [0.4, 0.0]})
ATTENTION = RATES.assign(attention_pairs=[900, 450], isolated_pairs=[100, 100])
MANY = pd.DataFrame(
    [
        {"label": f"arm {i}", "samples": 480 if i < 7 else 130 * i, "pass_at_one": 50 + i % 3, "ours": i == 0}
        for i in range(13)
    ]
)
PANELS = {"Reported": POINTS, "Measured": MANY.assign(low=45.0, high=60.0)}

FIGURES = {
    "cluster_map": lambda: figures.cluster_map(RNG.normal(size=300), RNG.normal(size=300), CLUSTER),
    "ifd_histogram": lambda: figures.ifd_histogram(IFD, CLUSTER),
    "ifd_against_length": lambda: figures.ifd_against_length(IFD, np.arange(len(IFD)), np.arange(len(IFD)) % 3 == 0),
    "selection_bars": lambda: figures.selection_bars(
        [30, 40], {"below the quota": [50, 60], "IFD ≥ 1": [3, 0]}, labels=[0, 1]
    ),
    "padding_illustration": lambda: figures.padding_illustration(LENGTHS, 16),
    "padding_rates": lambda: figures.padding_rates(RATES),
    "padding_rates and attention": lambda: figures.padding_rates(ATTENTION),
    "loss_curves": lambda: figures.loss_curves(CURVES),
    "pass_at_one_bars": lambda: figures.pass_at_one_bars(SCORES),
    "time_memory_bars": lambda: figures.time_memory_bars(TRAININGS),
    "pass_at_one_bars of several seeds": lambda: figures.pass_at_one_bars(AVERAGED),
    "data_efficiency": lambda: figures.data_efficiency(PANELS),
    "sampling_rate_curve": lambda: figures.sampling_rate_curve(
        CURVE, {"a": "HumanEval", "b": "HumanEval+", "c": "MBPP+"}
    ),
    "cost_bars": lambda: figures.cost_bars(COSTS),
    "pipeline_diagram": figures.pipeline_diagram,
    "cdas_illustration": figures.cdas_illustration,
}


def test_a_training_of_one_logged_step_is_a_point_that_can_be_seen():
    line = figures.loss_curves({"short": [(5, 0.3)]}).axes[0].lines[-1]
    assert line.get_marker() == "o" and list(line.get_ydata()) == [0.3]


def test_the_legend_of_sampling_rates_does_not_cover_the_title_of_a_single_panel():
    frame = pd.DataFrame({"setting": ["only"], "ratio": [0.4], "a": [50.0], "b": [60.0]})
    fig = figures.sampling_rate_curve(frame, {"a": "HumanEval with a long name", "b": "MBPP with a long name"})
    fig.draw_without_rendering()
    boxes = [part.get_window_extent() for part in (fig.legends[0], fig._suptitle)]
    assert not boxes[0].overlaps(boxes[1])


def texts(fig):
    """Every text that is drawn, with its box in pixels."""
    fig.draw_without_rendering()
    hidden = {id(label) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for label in _labels_out_of_view(axis)}
    found = {id(t): t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()}
    # of an annotation the text alone, without its line
    return [(t.get_text(), Text.get_window_extent(t)) for key, t in found.items() if key not in hidden]


def _labels_out_of_view(axis):
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    gone = [tick for tick in ticks if not low - slack <= tick.get_loc() <= high + slack or not axis.axes.axison]
    return [label for tick in gone for label in (tick.label1, tick.label2)]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_the_page_and_the_axes_say_what_they_show(name):
    fig = FIGURES[name]()
    width, height = fig.bbox.size
    for text, box in texts(fig):
        assert -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1, text
    assert name == "pipeline_diagram" or fig.axes[-1].get_xlabel()


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "cluster_map"])
def test_no_text_covers_another(name):
    found = texts(FIGURES[name]())
    for i, (text, box) in enumerate(found):
        for other, rival in found[i + 1 :]:
            width = min(box.x1, rival.x1) - max(box.x0, rival.x0)
            height = min(box.y1, rival.y1) - max(box.y0, rival.y0)
            assert width <= 1 or height <= 1, f"{text!r} covers {other!r}"


def test_the_same_figure_gives_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from codeact_lib import figures;"
        "figures.save_figure(figures.cdas_illustration(), sys.argv[1] + '/one')"
    )
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
    for suffix in style.FORMATS:
        once, again = ((tmp_path / seed / f"one.{suffix}").read_bytes() for seed in "12")
        assert once == again and len(once) > 1000


def test_saving_again_gives_the_same_bytes_and_all_formats(tmp_path):
    fig = figures.cluster_map([0, 1, 2, 3], [0, 1, 0, 1], [0, 0, 1, 1])
    paths = figures.save_figure(fig, tmp_path / "deep" / "map")
    assert [path.suffix for path in paths] == [".svg", ".pdf", ".png"]
    before = [path.read_bytes() for path in paths]
    assert before == [path.read_bytes() for path in figures.save_figure(fig, tmp_path / "deep" / "map")]


def test_a_figure_shows_itself_in_a_notebook_without_pyplot():
    code = (
        "import sys; from codeact_lib import figures;"
        "png = figures.pipeline_diagram()._repr_png_();"
        "assert png[:4] == b'\\x89PNG' and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_illustration_counts_the_slots_of_the_papers_example():
    titles = [ax.get_title(loc="left") for ax in figures.padding_illustration(LENGTHS, 16).axes]
    assert [t.split(": ")[1] for t in titles] == [
        "6 rows × 16 = 96 slots, 62% padding",
        "6 rows × 11 = 66 slots, 45% padding",
        "3 rows × 13 = 39 slots, 8% padding",
    ]


def test_the_cost_of_attention_is_drawn_in_multiples_of_that_inside_the_samples():
    rates, costs = figures.padding_rates(ATTENTION).axes
    assert [bar.get_width() for bar in rates.patches] == [40, 0] and len(figures.padding_rates(RATES).axes) == 1
    assert [bar.get_width() for bar in costs.patches] == [9, 4.5]
    assert [text.get_text() for text in costs.texts] == [" 9.0×", " 4.5×"]


def test_the_histogram_shows_every_scored_row_and_says_how_many_are_dropped():
    ax = figures.ifd_histogram(IFD, CLUSTER).axes[0]
    assert sum(bar.get_height() for bar in ax.patches) == np.isfinite(IFD).sum()
    assert ax.get_title(loc="left").startswith(f"{np.mean(IFD[np.isfinite(IFD)] >= 1):.1%}")


def test_difficulty_can_be_drawn_where_no_row_has_a_score(tmp_path):
    nothing = np.full(3, np.nan)
    for fig in (figures.ifd_histogram(nothing, [0, 1, 1]), figures.ifd_against_length(nothing, [0, 0, 0], [False] * 3)):
        figures.save_figure(fig, tmp_path / "empty")
    assert "no row has a score" in [text for text, _ in texts(fig)]


def test_the_bars_of_a_histogram_meet_at_the_limit():
    ifd = np.linspace(0.3, 1.73, 500)
    bars = figures.ifd_histogram(ifd, np.zeros(500)).axes[0].patches
    assert sum(bar.get_height() for bar in bars if bar.get_x() > 1 - 1e-9) == np.sum(ifd >= 1)


# Machado, Oliveira and Fernandes (2009): full protanopia, deuteranopia and tritanopia, on linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def seen_as(colour, kind):
    """CIE Lab (D65) of a colour as an eye of that kind sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(BLINDNESS[kind] @ linear, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def least_distance(colours, kind):
    pairs = itertools.combinations(colours, 2)
    return min(np.linalg.norm(seen_as(a, kind) - seen_as(b, kind)) for a, b in pairs)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_told_apart_with_any_colour_blindness(kind):
    side_by_side = (style.PALETTE[:6], tuple(style.ARM_COLOURS.values()))
    assert all(least_distance(colours, kind) > 12 for colours in side_by_side)  # 2.3 is just noticeable
    assert least_distance(style.PALETTE, kind) > 7
    assert least_distance(("#ff7f0e", "#bcbd22"), "deutan") < 12  # orange and olive: the measure can tell


def test_difficulty_against_length_draws_every_scored_row_and_high_values_at_the_end_of_the_axis():
    ifd, kept = np.array([0.5, 0.9, np.nan, 40.0, 1.2]), np.array([True, True, False, False, False])
    ax = figures.ifd_against_length(ifd, [10, 20, 30, 40, 0], kept).axes[0]
    dropped, chosen = (points.get_offsets().tolist() for points in ax.collections)
    assert chosen == [[10, 0.5], [20, 0.9]] and dropped == [[40, selection.IFD_TOP]]  # no score, no token: no point
    assert "higher values drawn at 3" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["dropped (3)", "chosen (2)"]


def test_the_sampling_rate_curve_leaves_out_scores_that_nobody_measured():
    frame = pd.DataFrame({"setting": "mini", "ratio": [0.4, 1.0], "humaneval": [40.0, 50.0]})
    fig = figures.sampling_rate_curve(frame, {"humaneval": "HumanEval", "mbpp": "MBPP"})
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["HumanEval"]


def test_an_arm_keeps_its_colour_over_all_figures():
    assert results.arm_colours(["x", "CodeACT"])["CodeACT"] == results.arm_colours(["CodeACT", "y"])["CodeACT"]


def test_the_strong_line_of_a_loss_curve_is_a_running_mean_over_a_twentieth():
    values = RNG.random(60)  # a twentieth and its middle: three points
    line = figures.loss_curves({"run": list(enumerate(values))}).axes[0].lines[-1]
    naive = [np.mean(values[max(0, i - 1) : i + 2]) for i in range(60)]
    assert list(line.get_ydata()) == pytest.approx(naive, abs=1e-9)


def test_units_fit_the_value():
    assert [time_unit(s)[1] for s in (39.2, 7200, 28_080, 200_000)] == ["s", "min", "min", "h"]
    assert [memory_unit(b)[1] for b in (3.2e8, 3.2e9)] == ["MiB", "GiB"]
    assert [number(v) for v in (1234.5, 58.31, 2.068, 63.0, 100.0)] == ["1,234", "58.3", "2.07", "63", "100"]
