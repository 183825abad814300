"""Two processes train as one does: same samples a step, same loss, same weights, one set of files."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import REPO
from tiny_models import make_rows, save_tiny_base, write_rows

from codeact_lib.modeling.load import load_base_model
from codeact_lib.training import fine_tune
from codeact_lib.training.checkpoints import SEALED
from codeact_lib.training.launch import ACCELERATE_CONFIGS, accelerate_config_path

SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, "tests")
from tiny_models import tiny_model
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator

dist.init_process_group("gloo")
mesh, model = init_device_mesh("cpu", (2,)), tiny_model("llama", "codeact_segments")
samples = [{"input_ids": list(range(3, 3 + n))} for n in (4, 9, 6, 12)]
batch = DynamicPackCollator(0, 16, "balanced_pack")(samples[dist.get_rank() :: 2])
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
use_supervised_loss(fully_shard(model, mesh=mesh))
loss = model(**batch, num_items_in_batch=27).loss * 2  # FSDP divides gradients by the number of processes
loss.backward()
norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).full_tensor()
dist.all_reduce(loss.detach())
if dist.get_rank() == 0:
    print("RESULT", loss.item() / 2, norm.item())
dist.destroy_process_group()
"""


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0")


def in_two_processes(launcher, *command):
    """Run a module or script in two processes over gloo; what they wrote to standard output."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    command = [sys.executable, "-m", *launcher, *command]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("scope", ["batch", "window"])
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(tmp_path, scope):
    settings = {
        "train_jsonl": str(write_rows(tmp_path / "train.jsonl", make_rows())),
        "model_path": str(save_tiny_base(tmp_path / "base")),
        "template": "deepseek-coder",
        "strategy": "balanced_pack",
        "packing_scope": scope,
        "max_length": 320,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 1,
    }
    one = fine_tune(**settings, output_dir=tmp_path / "one", gradient_accumulation_steps=2)
    config = tmp_path / "train.json"
    config.write_text(json.dumps({**settings, "output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 1}))
    ddp = "--config_file", str(accelerate_config_path("ddp"))  # as it ships; without GPUs it finds its way to gloo
    said = in_two_processes(ACCELERATE, *ddp, "-m", "codeact_lib.training", "--config", str(config))
    two = json.loads((tmp_path / "two" / "train_metrics.json").read_text())
    assert said.count("step 8/8") == 1 and two["processes"] == 2
    assert [p["loss"] for p in two["loss_curve"]] == pytest.approx([p["loss"] for p in one.loss_curve], abs=1e-5)
    assert [p["supervised_tokens"] for p in two["loss_curve"]] == [p["supervised_tokens"] for p in one.loss_curve]
    for ours, theirs in zip(
        *(load_base_model(tmp_path / n / "model").parameters() for n in ("one", "two")), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert not (tmp_path / "two" / "checkpoints").exists() and not list(tmp_path.rglob(SEALED))


def test_a_sharded_model_has_the_packed_loss_and_gradient_of_a_whole_one(tmp_path):
    """FSDP2 by hand over gloo (accelerate has it on GPUs only): the loss reaches past the shards' hooks to the head."""
    from tiny_models import tiny_model

    from codeact_lib.modeling.loss import supervised_loss
    from codeact_lib.packing.collate import DynamicPackCollator

    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    result = next(line for line in in_two_processes(TORCHRUN, str(script)).splitlines() if line.startswith("RESULT"))
    model = tiny_model("llama", "codeact_segments")
    samples = [{"input_ids": list(range(3, 3 + n))} for n in (4, 9, 6, 12)]
    loss = supervised_loss(model, DynamicPackCollator(0, 16, "balanced_pack")(samples), 27)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert [float(x) for x in result.split()[1:]] == pytest.approx([loss.item(), norm.item()], rel=1e-5)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_shipped_configurations_are_ones_that_accelerate_takes(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = accelerate_config_path(name)
    config = load_config_from_file(str(path))
    assert path.parent == ACCELERATE_CONFIGS and config.num_processes == 8
    sharding = yaml.safe_load(path.read_text()).get("fsdp_config", {})
    assert (sharding.get("fsdp_version") == 2) == (name == "fsdp2")
