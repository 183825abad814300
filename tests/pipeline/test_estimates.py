"""What a plan says a profile will cost: estimates with their basis, never a measurement, and no network asked."""

import pandas as pd
import pytest

from codeact_lib.artifacts import RunPaths, write_frame
from codeact_lib.config import load_profile
from codeact_lib.errors import CodeActError
from codeact_lib.pipeline import estimate_lines, plan, run
from codeact_lib.pipeline.estimates import MFU, PADDING, Costs, Machine, machine_for, model_shape


def costs(profile="paper", machine=("A100", 8), paths=None, **overrides):
    loaded = load_profile(profile, overrides)
    shapes = {spec.name: model_shape(spec) for spec in loaded.models}
    return Costs(loaded, paths or RunPaths("nowhere"), Machine(*machine, "given"), shapes)


@pytest.fixture(scope="module")
def paper():
    return costs()


def test_the_published_shapes_have_the_published_number_of_weights(paper):
    assert paper.weights == {
        "codellama-7b": pytest.approx(6.738e9, rel=1e-3),
        "codellama-13b": pytest.approx(13.016e9, rel=1e-3),
        "deepseek-coder-6.7b": pytest.approx(6.741e9, rel=1e-3),
    }
    small = costs("colab-qlora", ("T4", 1)).weights["deepseek-coder-1.3b"]
    assert small == pytest.approx(1.346e9, rel=1e-3)


def test_training_time_is_the_stated_formula(paper):
    full, codeact = (paper.profile.run(f"deepseek-coder-6.7b__evol-instruct__{arm}") for arm in ARMS)
    slots = 78_264 * 400 * 3 / (1 - PADDING["dynamic"])
    expected = slots * 8 * paper.weights["deepseek-coder-6.7b"] / (312e12 * MFU["full"] * 8)
    assert paper.training_seconds(full) == pytest.approx(expected)
    ratio = 0.4 * (1 - PADDING["dynamic"]) / (1 - PADDING["dynamic_pack"])
    assert paper.training_seconds(codeact) / expected == pytest.approx(ratio)
    assert 0.4 < expected / 60 / 259 < 1.5  # the order of what the paper reports, 259 min


ARMS = ("full__dynamic", "cdas-0.4__dynamic-pack")


def test_the_plan_of_the_paper_profile_has_runs_hours_memory_disk_and_basis():
    lines = list(estimate_lines(plan("paper"), "A100"))
    text = "\n".join(lines)
    assert lines[0] == "estimates (nothing of this is measured) for 8 x A100, as asked for"
    line = next(x for x in lines if "deepseek-coder-6.7b__evol-instruct__full__dynamic" in x)
    assert "GPU h (estimate); the paper reports 259 min and 50.75 GiB" in line
    assert sum("the paper reports" in x for x in lines) == 12
    for words in (
        "GPU hours (estimate)",
        "memory per GPU (estimate), codellama-13b",
        "disk (estimate)",
        "    training: ",
    ):
        assert words in text
    assert "does not fit" not in text


@pytest.mark.parametrize("profile", ["paper", "colab-qlora"])
def test_a_dry_run_prints_every_stage_with_its_papermill_line_and_the_estimates(tmp_path, profile):
    said = []
    places = {"artifacts_dir": str(tmp_path / "a"), "results_dir": str(tmp_path / "r")}
    waiting = run(profile, dry_run=True, say=said.append, **places)
    assert sum(line.strip().startswith("papermill ") for line in said) == waiting == len(plan(profile, **places))
    assert any("GPU hours (estimate)" in line for line in said) and not list(tmp_path.iterdir())


def test_what_training_fits_evaluation_may_not_and_the_plan_says_so():
    def evaluation(**overrides):
        lines = list(costs("colab-qlora", ("T4", 1), **overrides).memory_lines())
        return next(line for line in lines if "evaluation (estimate)" in line)

    assert evaluation().endswith("GB")
    assert "generation will lower its batch" in evaluation(generation_batch_size=128)
    assert "do not fit" not in evaluation(models=["deepseek-coder-6.7b"])  # in 4 bits, as it is trained
    assert "do not fit at any batch size" in evaluation(models=["deepseek-coder-6.7b"], tuning="lora")


def test_a_data_set_that_was_read_is_counted_and_an_unknown_one_is_said_to_be(tmp_path):
    paths = RunPaths("x", tmp_path / "a", tmp_path / "r")
    texts = {"instruction": ["a" * 33] * 5, "response": ["b" * 33] * 5}
    write_frame(paths.examples("evol-instruct"), pd.DataFrame(texts))
    assert costs("colab-qlora", ("T4", 1), paths).sizes["evol-instruct"] == (5, 20.0, "read by 01_cluster")
    other = [{"name": "mine", "path": "someone/set", "label": "Mine"}]
    unread = costs("colab-qlora", ("T4", 1), paths, datasets=other)
    assert any("mine: not estimated before 01_cluster" in line for line in unread.run_lines())


def test_the_mini_profile_is_not_estimated_and_an_unknown_gpu_is_refused():
    assert list(estimate_lines(plan("mini"))) == []
    with pytest.raises(CodeActError, match="--gpu Z9: no figures.*H100"):
        machine_for(load_profile("paper"), "Z9")
