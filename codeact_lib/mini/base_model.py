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

from codeact_lib.artifacts import atomic_write
from codeact_lib.measure import environment_facts
from codeact_lib.mini.corpus import pretraining_texts
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.prompts import TEMPLATES, encode

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


def train_tokenizer(recipe: Recipe):
    """A byte-level BPE tokenizer with single digits, learnt from the first documents of the stream."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    template = TEMPLATES[TEMPLATE]
    documents = (document(recipe.seed, i) for i in range(recipe.tokenizer_documents))
    tokenizer.train_from_iterator((template.prompt(p) + t if p else t for p, t in documents), trainer)
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)


def new_model(recipe: Recipe, tokenizer):
    """The untrained model, weights drawn from the recipe's seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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


class Documents:
    """The pre-training stream as a map-style data set of {"input_ids", "labels"}; every token is supervised."""

    def __init__(self, recipe: Recipe, tokenizer):
        self.recipe, self.tokenizer = recipe, tokenizer

    def __len__(self) -> int:
        return self.recipe.max_steps * self.recipe.per_device_train_batch_size

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        prompt, text = document(self.recipe.seed, int(index))
        prompt_ids = encode(self.tokenizer, TEMPLATES[TEMPLATE].prompt(prompt)) if prompt else []
        ids = [self.tokenizer.bos_token_id, *prompt_ids, *encode(self.tokenizer, text), self.tokenizer.eos_token_id]
        return {"input_ids": ids[: self.recipe.max_length], "labels": ids[: self.recipe.max_length]}


def build_base_model(output_dir, *, steps: int | None = None, work_dir=None, **changes) -> dict:
    """Train the base model and save it under `output_dir` (safetensors in bfloat16, tokenizer, README.md card,
    recipe.json).

    `steps` runs only the first steps of the unchanged schedule (for checks); other keywords change fields of the
    `Recipe`. Checkpoints go to `work_dir` (default: `output_dir`/checkpoints) and a second call continues from the
    last one. Returns the facts of the card.
    """
    recipe = replace(Recipe(), **changes)
    import torch

    output_dir = Path(output_dir)
    trainer, tokenizer = _trainer(recipe, Path(work_dir or output_dir / "checkpoints"), steps)
    from transformers.trainer_utils import get_last_checkpoint

    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))
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
    save(trainer.model, tokenizer, output_dir, facts)
    return facts


def _trainer(recipe: Recipe, work_dir: Path, steps: int | None):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(recipe)
    model = use_supervised_loss(new_model(recipe, tokenizer))
    arguments = TrainingArguments(
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

    class StopEarly(TrainerCallback):
        """End after the first `steps` steps; the schedule stays that of the whole recipe."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_training_stop or (
                steps is not None and state.global_step >= steps
            )

    collator = DynamicPackCollator(tokenizer, recipe.max_length, strategy="balanced_pack", isolate=True)
    documents = Documents(recipe, tokenizer)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=documents, callbacks=[StopEarly()])
    return trainer, tokenizer


def save(model, tokenizer, output_dir: Path, facts: dict) -> None:
    """Write weights (bfloat16), tokenizer, recipe.json and the model card."""
    import torch

    model.config.use_cache = True  # off for training only
    model.to(torch.bfloat16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    with atomic_write(output_dir / "recipe.json") as file:
        json.dump(facts, file, indent=1)
    with atomic_write(output_dir / "README.md") as file:
        file.write(card(facts))


def card(facts: dict) -> str:
    """The model card: what it is, how it was made, on what it was measured."""
    recipe, environment = facts["recipe"], facts["environment"]
    rows = "\n".join(f"| {key} | {value} |" for key, value in recipe.items())
    return f"""# CodeACT mini base model

A Llama-architecture code model with {facts["parameters"]:,} parameters, trained from scratch by
`codeact mini build-base` on generated Python functions, functions with comments and docstrings, short functions of the
Python standard library (about one document in twelve) and a few one- or two-step instructions with answers. It exists
so that every part of CodeACT can be run and watched on a laptop, and is not useful for anything else.
Licence: Apache-2.0.

No training document has an operation chain of the mini benchmark.

- steps: {facts["steps"]}, last training loss {facts["last_loss"]} (mean over 50 steps, nats per token)
- trained on: {environment.get("cpu")}, {facts["threads"]} thread(s), {facts["seconds_of_last_attempt"]:.0f} s
- weights: bfloat16 safetensors; tokenizer: byte-level BPE, {recipe["vocab_size"]} tokens, single digits

| recipe | value |
|---|---|
{rows}
"""
