"""Training does the same whatever the padding, goes on after a kill as if nothing had happened, and fails in words."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO
from tiny_models import N_ROWS, make_rows, save_tiny_base, write_rows
from transformers import get_cosine_schedule_with_warmup

from codeact_lib import artifacts
from codeact_lib.errors import ArtifactError, DataError, ModelError, ProfileError
from codeact_lib.measure import PeakMemory
from codeact_lib.modeling.load import load_base_model, load_tokenizer
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator, padding_report
from codeact_lib.packing.plan import plan_rows
from codeact_lib.prompts import tokenize_example
from codeact_lib.training import SeededOrder, TrainReport, fine_tune, fine_tune_in_child, make_arguments
from codeact_lib.training import run as run_module
from codeact_lib.training import trainer as trainer_module
from codeact_lib.training.__main__ import main
from codeact_lib.training.checkpoints import SEALED, latest_checkpoint
from codeact_lib.training.report import TrainRecorder
from codeact_lib.training.run import LOCK


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def train_jsonl(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", make_rows())


@pytest.fixture
def settings(base, train_jsonl, tmp_path):
    """Two epochs of four optimizer steps, eight samples each but for the last."""
    return {
        "train_jsonl": train_jsonl,
        "model_path": base,
        "output_dir": tmp_path / "out",
        "template": "deepseek-coder",
        "max_length": 320,
        "torch_threads": 1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "save_steps": 3,
        "logging_steps": 3,
    }


def weights(folder):
    return torch.cat([p.detach().flatten() for p in load_base_model(folder / "model").parameters()])


# ---- the same training under every strategy ------------------------------------------------------------------------


def naive_training(settings, steps=8):
    """Plain PyTorch: samples one by one, full logits, in the order of the seed; the losses and the last weights."""
    tokenizer, model = load_tokenizer(settings["model_path"]), load_base_model(settings["model_path"]).train()
    samples = [tokenize_example(tokenizer, "deepseek-coder", r["instruction"], r["response"], 320) for r in make_rows()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, steps)
    order, losses = SeededOrder(len(samples), 0), []
    for epoch in range(2):
        order.set_epoch(epoch)
        indices = list(order)
        for start in range(0, len(samples), 8):
            batch = [samples[i] for i in indices[start : start + 8]]
            total = sum(summed_loss(model, s) for s in batch) / sum(len(s["labels"]) - s["n_prompt"] for s in batch)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(total.item())
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


def summed_loss(model, sample):
    logits = model(torch.tensor([sample["input_ids"]]), use_cache=False).logits[0, :-1]
    return F.cross_entropy(logits, torch.tensor(sample["labels"])[1:], reduction="sum")


@pytest.mark.parametrize("scope", ["batch", "window"])
@pytest.mark.parametrize("strategy", ["dynamic", "dynamic_pack", "balanced_pack", "flat"])
def test_every_strategy_trains_as_plain_pytorch_on_single_samples_does(settings, strategy, scope):
    losses, expected = naive_training(settings)
    report = fine_tune(**{**settings, "strategy": strategy, "packing_scope": scope, "logging_steps": 1})
    assert [point["loss"] for point in report.loss_curve] == pytest.approx(losses, abs=1e-4)
    assert torch.allclose(weights(settings["output_dir"]), expected, atol=1e-4)
    assert report.isolation_error < 1e-5


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_checkpointed_gradients_are_the_same_and_half_precision_stays_near(settings, tuning):
    curves = {}
    for name, change in {"plain": {}, "checkpointed": {"gradient_checkpointing": True}, "half": {"bf16": True}}.items():
        folder = settings["output_dir"] / name
        report = fine_tune(**{**settings, "tuning": tuning, "output_dir": folder, "logging_steps": 1, **change})
        curves[name] = [point["loss"] for point in report.loss_curve]
    assert curves["checkpointed"] == pytest.approx(curves["plain"], abs=1e-4)
    assert curves["half"] == pytest.approx(curves["plain"], rel=0.03) and curves["half"] != curves["plain"]


def test_the_order_is_a_permutation_of_its_own_each_epoch_and_depends_on_the_seed_alone():
    def epochs(seed):
        order = SeededOrder(20, seed)
        return [(order.set_epoch(epoch), list(order))[1] for epoch in range(3)]

    assert all(sorted(indices) == list(range(20)) for indices in epochs(0))
    torch.manual_seed(1)
    first = epochs(0)
    torch.manual_seed(2)
    assert epochs(0) == first and len({tuple(indices) for indices in [*first, *epochs(1)]}) == 6


def test_without_isolation_and_by_micro_batch_the_training_is_another_one(settings):
    curves = [
        [
            point["loss"]
            for point in fine_tune(**{**settings, "output_dir": settings["output_dir"] / name, **change}).loss_curve
        ]
        for name, change in {
            "ours": {},
            "see-each-other": {"isolate": False},
            "mean-of-means": {"loss_normalization": "micro_batch"},
        }.items()
    ]
    assert np.abs(np.subtract(curves[0], curves[1])).max() > 1e-4
    assert np.abs(np.subtract(curves[0], curves[2])).max() > 1e-4


def test_the_authors_preset_has_their_loss_to_the_letter(settings):
    """Rows of joined samples read by plain causal attention; the mean of a micro-batch; the mean of those means."""
    tokenizer, model = load_tokenizer(settings["model_path"]), load_base_model(settings["model_path"])
    samples = [tokenize_example(tokenizer, "deepseek-coder", r["instruction"], r["response"], 320) for r in make_rows()]
    first, means = list(SeededOrder(N_ROWS, 0))[:8], []
    for batch in (first[:4], first[4:]):
        rows = plan_rows([len(samples[i]["input_ids"]) for i in batch], 320, "dynamic_pack")
        joined = [{k: sum((samples[batch[i]][k] for i in row), []) for k in ("input_ids", "labels")} for row in rows]
        supervised = sum(label != -100 for row in joined for label in row["labels"])
        means.append(sum(summed_loss(model, row) for row in joined).item() / supervised)
    authors = {"strategy": "dynamic_pack", "isolate": False, "loss_normalization": "micro_batch", "max_steps": 1}
    assert fine_tune(**{**settings, **authors}).final_loss == pytest.approx(np.mean(means), abs=1e-5)


# ---- what is reported ----------------------------------------------------------------------------------------------


def test_the_report_counts_what_was_trained_on(settings):
    report = fine_tune(**{**settings, "strategy": "dynamic_pack"})
    tokenizer = load_tokenizer(settings["model_path"])
    samples = [tokenize_example(tokenizer, "deepseek-coder", r["instruction"], r["response"], 320) for r in make_rows()]
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    supervised = sum(len(sample["labels"]) - sample["n_prompt"] for sample in samples)
    assert (report.n_samples, report.optimizer_steps) == (N_ROWS, 8)
    assert (report.tokens, report.supervised_tokens) == (2 * tokens, 2 * supervised)
    slots = 0
    for epoch in range(2):
        order = SeededOrder(N_ROWS, 0)
        order.set_epoch(epoch)
        slots += padding_report([len(samples[i]["input_ids"]) for i in order], 320, 4, ["dynamic_pack"])["slots"][0]
    assert report.slots == slots and report.padding_rate == pytest.approx(1 - 2 * tokens / slots)
    assert [point["step"] for point in report.loss_curve] == [3, 6, 8]
    assert report.loss_curve[-1]["supervised_tokens"] == report.supervised_tokens
    assert report.peak_memory_kind == "rss_growth" and report.seconds > 0
    assert 0 <= report.peak_memory_bytes < 2**30  # a training of a blink may fit into memory that was there


def test_the_report_on_disk_is_the_one_returned_and_the_checkpoints_are_gone(settings):
    report = fine_tune(**settings)
    out = settings["output_dir"]
    assert TrainReport(**json.loads((out / "train_metrics.json").read_text())) == report
    assert not (out / "checkpoints").exists()
    names = {path.name for path in (out / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names), "no pickle among the results"


def test_rows_that_cannot_be_learnt_from_are_left_out_and_counted(settings, tmp_path):
    rows = [*make_rows(6), {"instruction": "a", "response": " "}, {"instruction": "long " * 400, "response": "b"}]
    rows.append({"instruction": "a", "response": "return x\n" * 300})
    report = fine_tune(**{**settings, "train_jsonl": write_rows(tmp_path / "train.jsonl", rows)})
    assert report.dropped == {"empty": 1, "prompt_too_long": 1}
    assert (report.n_samples, report.truncated) == (7, 1)


def test_rows_that_are_too_long_are_left_out_and_counted_when_asked_for(settings, tmp_path):
    rows = [*make_rows(6), {"instruction": "a", "response": "return x\n" * 300}]
    train_jsonl = write_rows(tmp_path / "train.jsonl", rows)
    report = fine_tune(**{**settings, "train_jsonl": train_jsonl, "overlong": "drop"})
    assert report.dropped == {"empty": 0, "prompt_too_long": 0, "overlong": 1}
    assert (report.n_samples, report.truncated) == (6, 0)


def test_the_model_card_says_what_was_done(settings):
    described = {"title": "A trial", "data set": "adders", "selection": "cdas, 40%"}
    report = fine_tune(**{**settings, "strategy": "flat", "described_as": described})
    card = (settings["output_dir"] / "model" / "README.md").read_text()
    for line in (
        "# A trial",
        "| selection | cdas, 40% |",
        "| samples trained on | 30 |",
        "| padding strategy | flat, packed within the batch |",
        "| learning_rate | 0.01 |",
        f"| final loss (nats per supervised token) | {report.final_loss:.4f} |",
        f"| attention | {report.attn_implementation} |",
    ):
        assert line in card, card
    assert f"base_model: {settings['model_path']}" in card and "None" not in card


def test_every_other_training_argument_is_handed_on(settings):
    slow = fine_tune(**{**settings, "optim": "sgd", "learning_rate": 1e-9}).loss_curve
    assert slow[0]["loss"] == pytest.approx(slow[-1]["loss"], abs=0.5)
    report = fine_tune(**{**settings, "output_dir": settings["output_dir"] / "short", "max_steps": 3})
    assert report.optimizer_steps == 3 and report.epochs == pytest.approx(24 / N_ROWS)


def test_useful_work_is_counted_by_tokens_and_samples_alone(settings):
    reports = [
        fine_tune(**{**settings, "strategy": strategy, "output_dir": settings["output_dir"] / strategy})
        for strategy in ("dynamic", "flat")
    ]
    assert reports[0].model_flops == reports[1].model_flops > 6 * reports[0].tokens * 32 * 300
    assert reports[0].model_flops_utilization is None, "no GPU, no peak to compare with"


def test_memory_held_for_a_moment_inside_the_block_is_seen_and_memory_before_it_is_not():
    np.ones(2**24)  # 128 MiB that are gone before the block begins
    with PeakMemory() as memory:
        rest = memory.bytes()
        array = np.ones(2**23)
        time.sleep(0.5)
        del array
    assert rest < 2**23
    assert 0.9 * 2**26 < memory.bytes() < 1.5 * 2**26


# ---- killed and started again --------------------------------------------------------------------------------------


def training_command(settings):
    """The command line of these settings, their JSON file written."""
    config = settings["output_dir"] / "train.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}))
    return [sys.executable, "-m", "codeact_lib.training", "--config", str(config)]


def kill_after_checkpoint(settings, step):
    """Train in a process of its own and kill it as soon as the checkpoint of that step (or a later one) is sealed."""
    out, command = settings["output_dir"], training_command(settings)
    child = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL)
    try:
        while child.poll() is None:
            sealed = [int(path.parent.name.split("-")[1]) for path in out.glob(f"checkpoints/*/{SEALED}")]
            if any(found >= step for found in sealed):
                break
            time.sleep(0.01)
        assert child.poll() is None, "it ended before it could be killed"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_a_killed_training_goes_on_and_ends_as_an_undisturbed_one(settings, tmp_path, capsys, tuning):
    settings = {**settings, "tuning": tuning, "num_train_epochs": 8, "save_steps": 5, "packing_scope": "window"}
    again = {**settings, "output_dir": tmp_path / "killed"}
    kill_after_checkpoint(again, step=10)
    resumed = fine_tune(**again)
    assert "resuming from checkpoint-" in capsys.readouterr().out and resumed.resumed
    assert_same_training(resumed, fine_tune(**settings))


def assert_same_training(resumed, undisturbed):
    assert resumed.loss_curve == undisturbed.loss_curve and resumed.final_loss == undisturbed.final_loss
    for count in ("supervised_tokens", "tokens", "slots", "rows", "optimizer_steps"):
        assert getattr(resumed, count) == getattr(undisturbed, count)


@pytest.fixture
def interrupted(settings, monkeypatch):
    """The folder with the checkpoints of steps 3 and 6 of a training that was stopped in step 7 of 8."""
    return interrupt_in_step_seven(settings, monkeypatch)


def interrupt_in_step_seven(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TrainRecorder, "finish_step", stop_in_step_seven(TrainRecorder.finish_step))
        with pytest.raises(KeyboardInterrupt):
            fine_tune(**settings)
    folder = settings["output_dir"] / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    return folder


def stop_in_step_seven(finish_step):
    def stopping(recorder, loss, learning_rate):
        if len(recorder.learning_rates) == 6:
            raise KeyboardInterrupt
        finish_step(recorder, loss, learning_rate)

    return stopping


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGE = {
    "half written": lambda folder: (folder / SEALED).unlink(),
    "a weight file cut short": lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
    "a flipped byte": lambda folder: flip_a_byte(folder / "optimizer.pt"),
    "a missing file": lambda folder: (folder / "rng_state.pth").unlink(),
    "an unreadable seal": lambda folder: (folder / SEALED).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(settings, interrupted, tmp_path, damage, capsys):
    DAMAGE[damage](interrupted / "checkpoint-6")
    report = fine_tune(**settings)
    said = capsys.readouterr().out
    assert "checkpoint-6 is not used" in said and "resuming from checkpoint-3" in said
    assert report.loss_curve == fine_tune(**{**settings, "output_dir": tmp_path / "undisturbed"}).loss_curve


def test_the_seconds_of_all_attempts_add_up(settings, interrupted):
    seal = interrupted / "checkpoint-6" / SEALED
    state = json.loads(seal.read_text())
    state["log_book"]["seconds"] = 1000.0
    seal.write_text(json.dumps(state))
    assert 1000 < fine_tune(**settings).seconds < 1100


def test_checkpoints_of_another_training_are_not_gone_on_from(settings, interrupted, capsys):
    report = fine_tune(**{**settings, "learning_rate": 1e-3})
    assert not report.resumed and "other data or arguments" in capsys.readouterr().out


def test_saving_more_often_does_not_make_it_another_training(settings, interrupted):
    assert fine_tune(**{**settings, "save_steps": 2}).resumed


FULL_DISK = """
import resource, sys
from codeact_lib.training.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(["--config", sys.argv[1]]))
"""


def test_a_full_disk_ends_the_training_in_words_and_it_goes_on_from_the_checkpoint_before(
    settings, interrupted, tmp_path
):
    """The limit is on the size of a file: the optimizer's state of a later checkpoint does not fit any more."""
    config = tmp_path / "train.json"
    config.write_text(json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}))
    shutil.rmtree(interrupted / "checkpoint-6")
    code = FULL_DISK.format(limit=(interrupted / "checkpoint-3" / "optimizer.pt").stat().st_size // 2)
    done = subprocess.run([sys.executable, "-c", code, str(config)], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "checkpoint-6 could not be written" in done.stderr and "goes on from checkpoint-3" in done.stderr
    assert [path.name for path in interrupted.iterdir()] == ["checkpoint-3"]
    assert fine_tune(**settings).loss_curve == fine_tune(**{**settings, "output_dir": tmp_path / "calm"}).loss_curve


def test_a_disk_too_full_for_the_finished_model_costs_no_step(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_model", interrupted_saving)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(**settings)
    last = settings["output_dir"] / "checkpoints" / "checkpoint-8"
    config = tmp_path / "train.json"
    config.write_text(json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}))
    code = FULL_DISK.format(limit=(last / "model.safetensors").stat().st_size // 2)
    done = subprocess.run([sys.executable, "-c", code, str(config)], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the finished model could not be written" in done.stderr and "goes on from checkpoint-8" in done.stderr
    losses = json.loads((last / SEALED).read_text())["log_book"]["losses"]
    report = fine_tune(**settings)
    assert report.resumed and report.optimizer_steps == 8 and report.final_loss == losses[-1]
    assert (settings["output_dir"] / "model" / "model.safetensors").is_file()


def interrupted_saving(*args):
    raise KeyboardInterrupt


def test_the_checkpoint_before_stays_until_the_new_one_is_sealed(settings, monkeypatch):
    seen = []
    seal = trainer_module.seal_checkpoint

    def look(folder, state):
        seen.append(sorted(path.name for path in folder.parent.iterdir()))
        seal(folder, state)

    monkeypatch.setattr(trainer_module, "seal_checkpoint", look)
    fine_tune(**{**settings, "save_total_limit": 1})
    assert seen[:2] == [["checkpoint-3"], ["checkpoint-3", "checkpoint-6"]]


def test_a_missing_shard_of_the_base_model_is_named(settings, base, tmp_path):
    sharded = tmp_path / "sharded"
    load_base_model(base).save_pretrained(sharded, max_shard_size="20KB")
    load_tokenizer(base).save_pretrained(sharded)
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot load a model from"):
        fine_tune(**{**settings, "model_path": sharded})
    shard.unlink()
    with pytest.raises(ModelError, match=f"cannot load a model from.*{shard.name}"):
        fine_tune(**{**settings, "model_path": sharded})


def test_no_checkpoints_means_starting_from_the_beginning(tmp_path):
    assert latest_checkpoint(tmp_path / "none", "identity") is None


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "a"}', "line 2.*'response'"),
        ('{"instruction": "a", "response": 3}', "line 2.*must be text"),
        ("{half", "line 2"),
        ("[1]", "line 2"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(settings, tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(make_rows(1)[0]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=f"train.jsonl, {message}"):
        fine_tune(**{**settings, "train_jsonl": path})


def test_on_a_mac_training_asks_for_no_bfloat16_autocast_and_no_pinned_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    args = make_arguments(tmp_path, {"bf16": True})
    assert not args.bf16 and not args.use_cpu and not args.dataloader_pin_memory
    assert "bf16 is left out" in capsys.readouterr().out
    with pytest.raises(ProfileError, match="fp16 needs an NVIDIA GPU"):
        make_arguments(tmp_path, {"fp16": True})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_jsonl": "nowhere.jsonl"}, ArtifactError, "nowhere.jsonl.*notebook 03"),
        ({"learning_rat": 1.0}, ProfileError, "learning_rat"),
        ({"fp16": True}, ProfileError, "fp16 needs an NVIDIA GPU"),
        ({"lr_scheduler_type": "zigzag"}, ProfileError, "zigzag"),
        ({"loss_normalization": "none"}, ProfileError, "step or micro_batch"),
        ({"strategy": "knapsack"}, DataError, "knapsack"),
        ({"packing_scope": "epoch"}, ProfileError, "batch or window"),
        ({"overlong": "split"}, DataError, "truncate or drop"),
        ({"packing_scope": "window", "tokens_per_micro_batch": 50}, DataError, "tokens_per_micro_batch"),
        ({"template": "alpaca"}, DataError, "alpaca"),
        ({"max_length": 8}, DataError, "none of 30 rows.*max_length"),
        ({"learning_rate": 1e30}, ModelError, "lower learning_rate"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one of the cases is about machines without a GPU")
def test_what_cannot_be_done_is_said_with_a_remedy(settings, change, error, message):
    with pytest.raises(error, match=message):
        fine_tune(**{**settings, **change})


def test_two_processes_do_not_train_into_one_folder(settings, monkeypatch):
    settings["output_dir"].mkdir()
    monkeypatch.setattr(artifacts, "PATIENCE_SECONDS", 0)
    with artifacts.locked(settings["output_dir"] / LOCK, "held here"):
        with pytest.raises(ArtifactError, match="another process is training into"):
            fine_tune(**settings)


# ---- a process of its own ------------------------------------------------------------------------------------------


def test_a_child_process_reports_its_progress_and_its_result(settings):
    lines = []
    report = fine_tune_in_child(settings, say=lines.append)
    assert lines[-1].startswith("step 8/8  loss ") and lines[-1].endswith(" 0 s left")
    assert report.loss_curve == fine_tune(**{**settings, "output_dir": settings["output_dir"] / "here"}).loss_curve


def test_an_error_of_the_child_is_raised_here(settings):
    with pytest.raises(ModelError, match="exit code 1: .*nowhere.jsonl does not exist"):
        fine_tune_in_child({**settings, "train_jsonl": "nowhere.jsonl"})


def test_a_child_ends_with_the_process_that_started_it(settings, tmp_path):
    """A killed runner must leave no training behind that writes into the folder which the next runner resumes."""
    settings = {**settings, "num_train_epochs": 2000}
    command = [*training_command(settings), "--with-parent"]
    code = f"import os, subprocess; subprocess.run([*{command!r}, str(os.getpid())])"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.DEVNULL)
    checkpoints = settings["output_dir"] / "checkpoints"
    while not list(checkpoints.glob(f"*/{SEALED}")) and parent.poll() is None:
        time.sleep(0.05)
    assert parent.poll() is None
    parent.kill()
    parent.wait()
    with artifacts.locked(settings["output_dir"] / LOCK, "still held"):  # given up by the child, or this raises
        shutil.rmtree(checkpoints)
    time.sleep(1)
    assert not checkpoints.exists()


def test_the_command_says_which_argument_is_missing(tmp_path, capsys):
    (tmp_path / "train.json").write_text('{"template": "codellama"}')
    assert main(["--config", str(tmp_path / "train.json")]) == 1
    assert "lacks model_path, output_dir, train_jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("loss", [use_supervised_loss, lambda model: model], ids=["ours", "the model's own"])
def test_the_three_line_recipe_trains_on_the_loss_of_unpacked_samples(settings, base, loss):
    """As README.md has it, the gradient accumulated over two batches; with transformers' own loss too."""
    from transformers import Trainer, TrainingArguments

    tokenizer, model = load_tokenizer(base), load_base_model(base)
    rows = make_rows(8)
    samples = [tokenize_example(tokenizer, "deepseek-coder", r["instruction"], r["response"], 320) for r in rows]
    expected = sum(summed_loss(model, s) for s in samples) / sum(len(s["labels"]) - s["n_prompt"] for s in samples)
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
    batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    args = TrainingArguments(str(settings["output_dir"]), **batches, **quiet)
    collator = DynamicPackCollator(tokenizer, max_length=320, strategy="balanced_pack")
    trainer = Trainer(loss(model), args, train_dataset=samples, data_collator=collator)
    assert trainer.train().training_loss == pytest.approx(expected.item(), abs=1e-5)
