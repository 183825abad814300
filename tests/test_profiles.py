"""The paper and Colab profiles from end to end on a CPU: their own code path, with small things from a stand-in hub.

Model, data set and embedding model come over the hub's interface; sizes, precision and attention are what a CPU allows.
Everything else is the profile's: adapters on 4-bit weights, several processes through accelerate, checkpointing.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPO
from hub import StandInHub
from tiny_models import save_tiny_embedder

from codeact_lib.mini import MINI_BASE_DIR, build_corpus
from codeact_lib.training.launch import ACCELERATE_CONFIGS

ARMS = [{"policy": "cdas", "ratio": 0.4, "strategy": "dynamic_pack"}]
SMALL = {
    "embedding_model": "tiny/embedder",
    "benchmarks": ["mini-humaneval", "mini-mbpp"],
    "benchmark_limit": 2,
    "max_new_tokens": 24,
    "n_rows_limit": 48,
    "n_clusters": 3,
    "evaluate_base": False,
    "arms": ARMS,
    "max_length": 320,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "save_steps": 1,
    "attn_implementation": "sdpa",  # no FlashAttention on a CPU
    "torch_threads": 1,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the mini model, 60 rows under the column names of EVOL-Instruct, and a tiny embedding model."""
    folder = tmp_path_factory.mktemp("repositories")
    rows = build_corpus("mini-evol").head(60).rename(columns={"response": "output"})
    (folder / "set").mkdir()
    rows[["instruction", "output"]].to_parquet(folder / "set" / "train-00000-of-00001.parquet")
    with StandInHub() as hub:
        hub.commits = {
            "model tiny/llama@main": hub.add("model", "tiny/llama", MINI_BASE_DIR),
            "dataset tiny/evol@main": hub.add("dataset", "tiny/evol", folder / "set"),
            "model tiny/embedder@main": hub.add("model", "tiny/embedder", save_tiny_embedder(folder / "embedder")),
        }
        yield hub


def run_profile(hub, folder, profile, **changes):
    """`codeact run` of a shipped profile with `--set` for everything that is small; what it wrote."""
    model = {"name": "tiny", "path": "tiny/llama", "revision": "main", "template": "deepseek-coder"}
    rows = {"name": "evol", "path": "tiny/evol", "revision": "main", "response_column": "output", "label": "EVOL"}
    values = {"name": f"{profile}-small", "models": [{**model, "label": "Tiny", "size": "2M"}], "datasets": [rows]}
    command = [sys.executable, "-m", "codeact_lib.cli", "run", "--profile", profile]
    for key, value in {**values, **SMALL, **changes}.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    command += ["--artifacts-dir", str(folder / "artifacts"), "--results-dir", str(folder / "results")]
    environment = {**os.environ, **hub.environment(folder / "home"), "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def check_run(folder, hub, profile):
    """The record of the one run, after checking that tables are there and that it names the commits it loaded."""
    assert (folder / "results" / "report.html").stat().st_size and (folder / "results" / "tables" / "rq1.csv").exists()
    assert read(folder / "artifacts" / "hub_commits.json") == hub.commits
    record = read(folder / "results" / "metrics" / "tiny__evol__cdas-0.4__dynamic-pack.json")
    assert record["profile"] == f"{profile}-small" and record["benchmarks"]["mini-humaneval"]["base"]["n"] == 2
    assert record["model"]["revision"] == hub.commits["model tiny/llama@main"]
    inputs = {name: stage["inputs"] for name, stage in record["provenance"]["stages"].items() if "inputs" in stage}
    assert hub.commits.items() <= {k: v for stage in inputs.values() for k, v in stage.items()}.items()
    return record


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_colab_profile_runs_from_end_to_end_with_adapters_on_four_bit_weights(hub, tmp_path):
    record = check_run(run_profile(hub, tmp_path, "colab-qlora", fp16=False), hub, "colab-qlora")
    assert record["train"]["tuning"] == "qlora" and record["train"]["optimizer_steps"] >= 2
    model = tmp_path / "artifacts" / "train" / record["run_id"] / "model"
    adapter = read(model / "adapter_config.json")
    assert adapter["base_model_name_or_path"] == "tiny/llama" and adapter["r"] == 8
    assert adapter["revision"] == hub.commits["model tiny/llama@main"] and not (model / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_paper_profile_runs_from_end_to_end_in_two_processes(hub, tmp_path):
    """By `accelerate launch`, over gloo. Without a GPU it does not shard (FSDP2); test_distributed does so by hand."""
    two = tmp_path / "two.yaml"
    two.write_text((ACCELERATE_CONFIGS / "fsdp2.yaml").read_text().replace("num_processes: 8", "num_processes: 2"))
    record = check_run(run_profile(hub, tmp_path, "paper", accelerate_config=str(two)), hub, "paper")
    assert record["train"]["tuning"] == "full" and record["train"]["processes"] == 2
    weights = tmp_path / "artifacts" / "train" / record["run_id"] / "model" / "model.safetensors"
    assert weights.stat().st_size > 4 * 1_000_000
