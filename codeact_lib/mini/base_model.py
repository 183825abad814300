"""The base model of the mini profile: a 2-million-parameter Llama architecture, trained from scratch on generated code.

As with the paper's models, the base model comes ready: it ships with the package. `codeact mini build-base` rebuilds
it from the recipe below (38 minutes on one thread of a busy 2-core machine). Documents are a function of (seed,
index), so training needs no stored corpus and resumes exactly. Every batch is packed with isolation, because the
fine-tuning that follows must not meet attention across samples for the first time.
"""

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from codeact_lib.artifacts import atomic_write
from codeact_lib.measure import environment_facts
from codeact_lib.mini.corpus import pretraining_texts
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.prompts import TEMPLATES, prompt_ids

TEMPLATE = "deepseek-coder"
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. Names are Hugging Face's own where it has one."""

    seed: int = 0
    vocab_size: int = 1536
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 512
    max_position_embeddings: int = 1024
    tokenizer_documents: int = 12_000
    per_device_train_batch_size: int = 32  # documents, about 2,000 tokens
    max_steps: int = 4200
    max_length: int = 320
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    lr_scheduler_type: str = "cosine"
    adam_beta2: float = 0.95
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


def document(seed: int, index: int) -> tuple[str, str]:
    """Document number `index` of the pre-training stream: (prompt or "", text)."""
    return next(pretraining_texts(random.Random(f"pretrain-{seed}-{index}")))


def prompt_of(instruction: str) -> str:
    """The prompt that asks `instruction`; plain code ("") has none."""
    return TEMPLATES[TEMPLATE].prompt(instruction) if instruction else ""


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits, learnt from the first documents of the stream."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = (document(recipe.seed, i) for i in range(recipe.tokenizer_documents))
    tokenizer.train_from_iterator((prompt_of(instruction) + text for instruction, text in documents), trainer)
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Documents(Dataset):
    """The pre-training stream as a map-style data set of {"input_ids", "labels"}; every token is supervised."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.recipe.max_steps * self.recipe.per_device_train_batch_size

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        instruction, text = document(self.recipe.seed, int(index))
        ids = [*prompt_ids(self.tokenizer, prompt_of(instruction), text), self.tokenizer.eos_token_id]
        return {"input_ids": ids[: self.recipe.max_length], "labels": ids[: self.recipe.max_length]}


class StopEarly(TrainerCallback):
    """End after the first `steps` steps; the schedule stays that of the whole recipe."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self.steps:
            control.should_training_stop = True


def build_base_model(
    output_dir: str | Path, *, steps: int | None = None, work_dir: str | Path | None = None, **changes: Any
) -> dict[str, Any]:
    """Train the base model and save it under `output_dir`: safetensors in bfloat16, tokenizer, README.md, recipe.json.

    `steps` runs only the first steps of the unchanged schedule (for checks); other keywords change the `Recipe`. A
    second call continues from the last checkpoint in `work_dir` (default: `output_dir`/checkpoints). Returns the facts.
    """
    output_dir = Path(output_dir)
    work_dir = Path(work_dir or output_dir / "checkpoints")
    recipe = replace(Recipe(), **changes)
    tokenizer = train_tokenizer(recipe)
    trainer = Trainer(
        use_supervised_loss(new_model(recipe, tokenizer)),
        _arguments(recipe, work_dir),
        data_collator=DynamicPackCollator(tokenizer, recipe.max_length, strategy="balanced_pack", isolate=True),
        train_dataset=Documents(recipe, tokenizer),
        callbacks=[] if steps is None else [StopEarly(steps)],
    )
    work_dir.mkdir(parents=True, exist_ok=True)
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work_dir)))
    curve = [{"step": entry["step"], "loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "recipe": asdict(recipe),
        "steps": trainer.state.global_step,
        "last_loss": curve[-1]["loss"] if curve else None,
        "loss_curve": curve,
        "seconds_of_last_attempt": round(result.metrics["train_runtime"], 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "threads": torch.get_num_threads(),
        "environment": environment_facts(),
    }
    trainer.model.config.use_cache = True  # off for training only
    trainer.model.to(torch.bfloat16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    with atomic_write(output_dir / "recipe.json") as file:
        json.dump(facts, file, indent=1)
    with atomic_write(output_dir / "README.md") as file:
        file.write(card(facts))
    return facts


def _arguments(recipe: Recipe, work_dir: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work_dir),
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_steps,
        adam_beta2=recipe.adam_beta2,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=True,
        use_cpu=True,
        seed=recipe.seed,
        logging_steps=50,
        save_steps=500,
        save_total_limit=2,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=False,
    )


def card(facts: dict[str, Any]) -> str:
    """The model card: what it is, how it was made, on what it was measured."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts["recipe"].items())
    return f"""# CodeACT mini base model

A Llama-architecture code model with {facts["parameters"]:,} parameters, trained from scratch by
`codeact mini build-base` on generated Python functions, functions with comments and docstrings, short functions of the
Python standard library (about one document in twelve) and a few one- or two-step instructions with answers. It exists
so that every part of CodeACT can be run and watched on a laptop, and is not useful for anything else.
Licence: Apache-2.0.

No training document has an operation chain of the mini benchmark.

- steps: {facts["steps"]}, last training loss {facts["last_loss"]} (mean over 50 steps, nats per token)
- trained on: {facts["environment"].get("cpu")}, {facts["threads"]} thread(s), {facts["seconds_of_last_attempt"]:.0f} s
- weights: bfloat16 safetensors; tokenizer: byte-level BPE, {facts["recipe"]["vocab_size"]} tokens, single digits

| recipe | value |
|---|---|
{rows}
"""
