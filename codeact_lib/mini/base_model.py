"""The base model of the mini profile: a 2-million-parameter Llama architecture, trained from scratch on generated code.

It ships with the package, as the paper's models come ready. `codeact mini build-base` rebuilds it from this recipe.
"""

import inspect
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from codeact_lib.artifacts import atomic_write, make_folder, write_json
from codeact_lib.measure import environment_facts
from codeact_lib.mini.corpus import pretraining_texts
from codeact_lib.mini.tokenizer import byte_level_bpe
from codeact_lib.modeling.loss import use_supervised_loss
from codeact_lib.packing.collate import DynamicPackCollator
from codeact_lib.prompts import TEMPLATES, prompt_ids

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

    def known_to(self, kind: type) -> dict[str, Any]:
        """Its values that `LlamaConfig` or `TrainingArguments` takes, which both have keywords of the same names."""
        parameters = inspect.signature(kind).parameters
        return {name: value for name, value in asdict(self).items() if name in parameters}


def document(recipe: Recipe, index: int) -> tuple[str, str]:
    """Prompt and text of document number `index` of the pre-training stream; plain code has the prompt ""."""
    # A function of seed and index alone, so that training needs no stored corpus and resumes exactly.
    instruction, text = next(pretraining_texts(random.Random(f"pretrain-{recipe.seed}-{index}")))
    return TEMPLATES["deepseek-coder"].prompt(instruction) if instruction else "", text


# ---- tokenizer and model -------------------------------------------------------------------------------------------
def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """The tokenizer of the base model, learnt from the first documents of the stream."""
    # With single digits: 1,536 entries leave no room for numbers, and a number in an example is copied digit by digit.
    documents = ("".join(document(recipe, i)) for i in range(recipe.tokenizer_documents))
    tokenizer = byte_level_bpe(documents, recipe.vocab_size, SPECIAL_TOKENS, single_digits=True)
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        **recipe.known_to(LlamaConfig),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


# ---- training ------------------------------------------------------------------------------------------------------
class Documents(Dataset):
    """The pre-training stream as a map-style data set of {"input_ids", "labels"}; every token is supervised."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.recipe.max_steps * self.recipe.per_device_train_batch_size

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = [*prompt_ids(self.tokenizer, *document(self.recipe, int(index))), self.tokenizer.eos_token_id]
        return {"input_ids": ids[: self.recipe.max_length], "labels": ids[: self.recipe.max_length]}


class StopEarly(TrainerCallback):
    """End after the first `steps` steps; the schedule stays that of the whole recipe."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self.steps:
            control.should_training_stop = True


def build_base_model(output_dir: str | Path, *, steps: int | None = None) -> dict[str, Any]:
    """Train the base model and save it under `output_dir`: safetensors in bfloat16, tokenizer, README.md, recipe.json.

    `steps` runs only the first steps of the unchanged schedule (for checks). A second call continues from the last
    checkpoint in `output_dir`/checkpoints. Returns the facts that recipe.json keeps.
    """
    output_dir = Path(output_dir)
    work_dir = make_folder(output_dir / "checkpoints")
    recipe = Recipe()
    tokenizer = train_tokenizer(recipe)
    args = TrainingArguments(
        output_dir=str(work_dir),
        **recipe.known_to(TrainingArguments),
        bf16=True,
        use_cpu=True,
        logging_steps=50,
        save_steps=500,
        save_total_limit=2,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=False,
    )
    # 38 minutes on one thread of a busy 2-core machine. Every batch is packed with isolation, because the fine-tuning
    # that follows must not be the first to be.
    collator = DynamicPackCollator(tokenizer, recipe.max_length, strategy="balanced_pack")
    documents = Documents(recipe, tokenizer)
    model = use_supervised_loss(new_model(recipe, tokenizer))
    trainer = Trainer(model, args, collator, documents, callbacks=[] if steps is None else [StopEarly(steps)])
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work_dir)))
    facts = facts_of(trainer, recipe, result.metrics["train_runtime"])
    trainer.model.config.use_cache = True  # off for training only
    trainer.model.to(torch.bfloat16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_json(output_dir / "recipe.json", facts)
    rows = [f"| {name} | {value} |" for name, value in facts["recipe"].items()]
    card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    with atomic_write(output_dir / "README.md") as file:
        file.write(card.format(**facts, rows="\n".join(rows)))
    return facts


def facts_of(trainer: Trainer, recipe: Recipe, seconds: float) -> dict[str, Any]:
    """What recipe.json and the card say of a finished training."""
    curve = [{"step": entry["step"], "loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry]
    return {
        "recipe": asdict(recipe),
        "steps": trainer.state.global_step,
        "last_loss": curve[-1]["loss"] if curve else None,
        "loss_curve": curve,
        "seconds_of_last_attempt": round(seconds, 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "threads": torch.get_num_threads(),
        "environment": environment_facts(),
    }
