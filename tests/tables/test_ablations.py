"""The tables of what the paper leaves open, on made-up records, against means and ratios taken by hand."""

import statistics

import pytest
from run_records import links, record

from codeact_lib.figures.results import sampling_rate_curve
from codeact_lib.tables import HEADINGS, ablations, frames, load_reported, write_table
from codeact_lib.tables.render import NOT_RUN

FULL, PACKED = ("full", 1.0, "dynamic"), ("full", 1.0, "dynamic_pack")
LESS, CODEACT = ("cdas", 0.4, "dynamic"), ("cdas", 0.4, "dynamic_pack")


def run(arm, seed=0, rate=0.5, seconds=10.0, memory=100_000_000):
    policy, ratio, strategy = arm
    name = f"{policy}-{ratio}-{strategy}-{seed}"
    made = record("mini-evol", *arm, rate, seconds, memory, n_train=100, seed=seed, run_id=name)
    for found in made["benchmarks"].values():  # another seed, other verdicts
        for task in list(found["verdicts"])[:seed]:
            found["verdicts"][task] = {"base": "pass", "plus": "pass"}
        for side in ("base", "plus"):
            found[side] = {"k": sum(v[side] == "pass" for v in found["verdicts"].values()), "n": found["n"]}
    return made


def test_means_and_spread_are_those_of_the_seeds():
    runs = [run(CODEACT, seed, seconds=10.0 + seed) for seed in (0, 1, 5)]
    means = ablations.policy_table([record(None), *runs]).frame
    assert len(means) == 1 and means.loc[0, "n_seeds"] == 3
    scores = [100 * r["benchmarks"]["mini-humaneval"]["base"]["k"] / 160 for r in runs]
    assert means.loc[0, "humaneval"] == pytest.approx(statistics.mean(scores), abs=1e-3)
    assert means.loc[0, "humaneval_sd"] == pytest.approx(statistics.stdev(scores), abs=1e-3)
    assert means.loc[0, "training_time_min"] == pytest.approx(12 / 60, abs=1e-4)
    cell = ablations.policy_table(runs).cells.loc[0, "HumanEval"].split("\n")[0]
    assert cell == f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"


def test_the_split_separates_fewer_samples_from_packing():
    arms = {FULL: 100.0, PACKED: 50.0, LESS: 40.0, CODEACT: 20.0}
    table = ablations.split_table([run(arm, seconds=s, memory=int(s) << 24) for arm, s in arms.items()])
    assert table.frame["time_ratio"].tolist() == [1.0, 0.5, 0.4, 0.2]
    assert table.frame["memory_ratio"].tolist() == [1.0, 0.5, 0.4, 0.2]
    assert [c.split("\n")[1] for c in table.cells["Training time"]] == ["× 1.00", "× 0.50", "× 0.40", "× 0.20"]
    assert links(table)[1] == "full-1.0-dynamic_pack-0"


def test_an_arm_that_was_not_run_says_so():
    table = ablations.split_table([run(FULL), run(CODEACT)])
    assert table.cells["Training time"].tolist()[1:3] == [NOT_RUN, NOT_RUN]
    assert NOT_RUN not in (table.cells["Training time"][0], table.cells["Training time"][3])


def test_the_sampling_curve_takes_packed_full_data_where_there_is_some():
    runs = [run(FULL), run(CODEACT), run(("cdas", 0.1, "dynamic_pack"))]
    frame = ablations.rate_table(runs).frame
    assert frame[["ratio", "strategy"]].values.tolist() == [
        [0.1, "dynamic_pack"],
        [0.4, "dynamic_pack"],
        [1.0, "dynamic"],
    ]
    assert ablations.rate_table([*runs, run(PACKED)]).frame["strategy"].tolist() == ["dynamic_pack"] * 3
    assert len(sampling_rate_curve(frame, HEADINGS).axes) == 1


def test_figures_draw_an_arm_once_at_the_mean_of_its_seeds():
    runs = [run(CODEACT, 0, seconds=10.0), run(CODEACT, 1, seconds=20.0), run(FULL, 1, seconds=50.0)]
    assert frames.time_memory_frame(runs)["seconds"].tolist() == pytest.approx([15.0, 50.0], abs=1e-3)
    scores = frames.pass_at_one_frame(runs).query("benchmark == 'HumanEval'")
    assert scores["label"].tolist() == ["CodeACT", "full data"]
    rates = [r["benchmarks"]["mini-humaneval"]["base"]["k"] / 160 for r in runs]
    assert scores["rate"].tolist() == pytest.approx([statistics.mean(rates[:2]), rates[2]], abs=1e-4)
    assert scores["sd"].iloc[0] == pytest.approx(statistics.stdev(rates[:2]), abs=1e-4)


def test_the_followups_rates_stand_below_the_measured_ones_as_a_source_of_their_own():
    followup = load_reported()["followup"]
    table = ablations.rate_table([run(CODEACT)], followup)
    reported = table.frame[table.frame["run_id"].isna()]
    assert len(reported) == 12 and len(table.frame) == 13
    row = reported[reported["setting"].str.endswith("DeepSeek-Coder 6.7B, OSS-Instruct") & (reported["ratio"] == 0.3)]
    assert row[list(HEADINGS)].values.tolist() == [[65.9, 59.1, 75.4, 62.2]]
    assert links(table) == ["cdas-0.4-dynamic_pack-0", *[None] * 12]
    assert len(ablations.rate_table([], followup).frame) == 12


@pytest.mark.parametrize("table", [ablations.split_table, ablations.policy_table, ablations.rate_table])
def test_every_table_writes_all_formats_with_and_without_measurements(table, tmp_path):
    for metrics in ([], [record(None)], [run(FULL), run(CODEACT), run(CODEACT, 1)]):
        assert all(path.stat().st_size for path in write_table(table(metrics), tmp_path / "table"))


def test_without_a_run_of_cdas_the_curve_of_rates_is_drawn_empty():
    """A profile with arms of one's own alone still gets its report."""
    (panel,) = sampling_rate_curve(ablations.rate_table([]).frame, HEADINGS).axes
    assert panel.get_title(loc="left") == "nothing was run"
