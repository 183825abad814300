"""Instruction-Following Difficulty: how much harder an answer is to predict than an instruction should leave it.

    IFD(a | q) = PPL(a | q) / PPL(a) = exp((nll_conditioned - nll_direct) / n)

with the summed negative log-likelihood (nats) of the n answer tokens after the instruction, and alone (CodeACT, arXiv
2408.02193, after Li et al., arXiv 2308.12032). Near 0: the instruction gives the answer away. Near 1: it hardly helps.
Above 1: it misleads, and the pair is probably mismatched.

    scores = score_ifd(model, tokenizer, examples, "deepseek-coder", max_length=2048, shard_dir="ifd/shards")

Rows become token sequences, two a row (here), sequences become sums (`nll`, `resume`), sums become a frame (here).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import pandas as pd
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from codeact_lib.errors import DataError, ModelError
from codeact_lib.ifd.nll import Sequence, sum_nll
from codeact_lib.ifd.resume import SumShards, model_fingerprint
from codeact_lib.prompts import TEMPLATES, PromptTemplate, encode, get_template, prompt_ids
from codeact_lib.sampling import USABLE

IFD_COLUMNS = ["example_id", "n_response_tokens", "nll_conditioned", "nll_direct", "ifd", "status"]

Rows: TypeAlias = "pd.DataFrame | Iterable[Mapping[str, Any]]"


def ifd_from_nll(nll_conditioned: Any, nll_direct: Any, n_tokens: Any, kind: str = "ppl_ratio") -> Any:
    """IFD from stored sums in nats over the same `n_tokens` answer tokens, as float64; scalars or (n,) arrays.

    NaN where `n_tokens` is 0. `kind`: "ppl_ratio", the paper's, or "loss_ratio", of the mean losses.
    """
    # Two quantities go by this name, and they rank differently: the second is what Cherry LLM's later code and
    # data-juicer call IFD.
    conditioned = np.asarray(nll_conditioned, dtype=np.float64)
    direct = np.asarray(nll_direct, dtype=np.float64)
    n = np.asarray(n_tokens, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if kind == "ppl_ratio":
            return np.exp((conditioned - direct) / np.where(n > 0, n, np.nan))[()]
        if kind == "loss_ratio":
            return (conditioned / np.where(n > 0, direct, np.nan))[()]
    raise ValueError(f"kind {kind!r} is unknown; choose ppl_ratio or loss_ratio")


def score_ifd(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Rows,
    template: str | PromptTemplate,
    *,
    max_length: int,
    preset: str = "corrected",
    tokens_per_batch: int | None = None,
    shard_dir: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Score every example.

    Args:
        model, tokenizer: a causal language model, on whatever device and in whatever precision, with or without
            adapters. NLLs are computed in float32 and added up in float64; no padding token is needed.
        examples: frame or list of dicts with `example_id, instruction, response`; the ids must differ.
        template: not used by `preset="authors"`.
        max_length: tokens of prompt and answer together; a longer answer is cut (status `truncated`).
        preset: `corrected` or `authors`, see `corrected_passes` and `authors_passes`.
        tokens_per_batch: slots of a batch, None for what suits the device. No score depends on it.
        shard_dir: folder for the append-only files. A second call with the same model and texts reads them and scores
            only what is missing; other models and changed texts in the same folder do no harm.
        progress: say every 5 seconds how far it is.

    Returns:
        Frame of `IFD_COLUMNS` in the order of `examples`. NLLs are sums over `n_response_tokens`. Status: `ok`,
        `truncated`, `prompt_too_long` (no room for an answer token), `empty` (no text on one side), `oom` (one row
        alone does not fit in memory; tried again on the next call), `nan`. The last four have IFD NaN; in `authors`
        they have 0, except `empty`, which that code drops beforehand.

    Raises:
        DataError: a missing column, a repeated id. ModelError: a tokenizer without any start token.
    """
    rows = _checked_rows(examples)
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    statuses = []
    sequences = []
    for i, row in enumerate(rows):
        passes = _Passes("empty")
        if isinstance(row["instruction"], str) and isinstance(row["response"], str):
            passes = PRESETS[preset](tokenizer, template, row["instruction"], row["response"], max_length)
        statuses.append(passes.status)
        if passes.conditioned:
            ids = np.array(passes.conditioned, np.int32)
            sequences.append(Sequence(i, "conditioned", ids, passes.n_prompt, row["example_id"]))
            sequences.append(Sequence(i, "direct", np.array(passes.direct, np.int32), 1, row["example_id"]))
    shards = None
    if shard_dir is not None:
        shards = SumShards(shard_dir, model_fingerprint(model))
    sums = sum_nll(model, sequences, tokens_per_batch, shards, progress)
    return _assemble(rows, statuses, sequences, sums, preset)


class Agreement(TypedDict):
    """What `scorer_agreement` finds."""

    n_rows: int
    n_scored_by_both: int  # the rows all the rest is about
    spearman: float  # rank correlation of the two IFDs, NaN where one is constant
    overlap: float  # share of the reference's choice that is in the other
    overlap_by_chance: float  # what a random choice of the same size would reach


def scorer_agreement(
    scores: pd.DataFrame, reference: pd.DataFrame, choose: Callable[[pd.DataFrame], Iterable[int]]
) -> Agreement:
    """How far the scores of one model can stand for those of another, on examples that both have scored.

    Both frames are of `score_ifd` over the same examples in the same order, else DataError. `choose` takes such a frame
    and gives the numbers of the rows chosen: `lambda frame: ifd_sample(frame["ifd"], 0.4)`.
    """
    # A model of 1B scores five times as fast as one of 7B. Whether it chooses the same rows is a question of the data
    # and the two models, so a sample is scored with both.
    from scipy.stats import spearmanr

    if scores["example_id"].tolist() != reference["example_id"].tolist():
        raise DataError("Both models must have scored the same examples in the same order.")
    both = scores["status"].isin(USABLE).to_numpy() & reference["status"].isin(USABLE).to_numpy()
    ours, theirs = (frame[both].reset_index(drop=True) for frame in (scores, reference))
    chosen = set(choose(ours))
    wanted = set(choose(theirs))
    spearman = math.nan
    if len(ours) > 1:
        spearman = float(spearmanr(ours["ifd"], theirs["ifd"]).statistic)
    return {
        "n_rows": len(scores),
        "n_scored_by_both": len(ours),
        "spearman": spearman,
        "overlap": len(chosen & wanted) / max(len(wanted), 1),
        "overlap_by_chance": len(chosen) / max(len(ours), 1),
    }


def _checked_rows(examples: Rows) -> list[Mapping[Any, Any]]:
    if isinstance(examples, pd.DataFrame):
        examples = examples.to_dict("records")
    rows = list(examples)
    seen = set()
    for number, row in enumerate(rows):
        for key in ("example_id", "instruction", "response"):
            if key not in row:
                raise DataError(f"Example {number} has no {key!r}: load the set with data.load_instructions.")
        if row["example_id"] in seen:
            raise DataError(f"Example {number} repeats the example_id {row['example_id']!r}: ids must differ.")
        seen.add(row["example_id"])
    return rows


# ---- token sequences -------------------------------------------------------------------------------------------------
class _Passes(NamedTuple):
    """The token ids of both passes over a row, none where nothing can be scored, and its status."""

    status: str
    conditioned: list[int] = []
    n_prompt: int = 1  # tokens of `conditioned` that are not scored
    direct: list[int] = []  # of which the first is not scored


def corrected_passes(
    tokenizer: Tokenizer, template: str | PromptTemplate, instruction: str, response: str, max_length: int
) -> _Passes:
    """The prompt of training, the answer tokenised alone, so that both passes score the same tokens; without an EOS."""
    # What says "a text begins here": BOS, else the end token that separated documents in pre-training. It stands before
    # the answer of the direct pass, so that the answer's first token counts in both.
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id
    if start is None:
        raise ModelError(
            "The tokenizer has neither a BOS nor an EOS token to start the direct pass with: set bos_token."
        )
    answer = encode(tokenizer, response)
    if not instruction.strip() or not response.strip() or not answer:
        return _Passes("empty")
    prompt = prompt_ids(tokenizer, get_template(template).prompt(instruction))
    room = max_length - len(prompt)
    if room <= 0:
        return _Passes("prompt_too_long")
    cut = answer[:room]
    return _Passes("ok" if cut == answer else "truncated", prompt + cut, len(prompt), [start, *cut])


def authors_passes(
    tokenizer: Tokenizer, template: str | PromptTemplate, instruction: str, response: str, max_length: int
) -> _Passes:
    """What the authors' released code scores, with a prompt of its own (for comparison; docs/deviations.md)."""
    # The prompt's length is counted with special tokens. Prompt and answer are tokenised jointly, so tokens may merge
    # across the boundary; the direct pass tokenises the answer alone and cannot score its first token (which is BOS,
    # where there is one). So the two passes may score different tokens.
    if not instruction or not response:
        return _Passes("empty")

    def cut(text: str, length: int) -> list[int]:
        return tokenizer(text, truncation=True, max_length=length)["input_ids"]

    prompt = TEMPLATES["ifd-authors"].prompt(instruction)
    n_prompt = len(cut(prompt, max_length))
    if n_prompt >= max_length:
        return _Passes("prompt_too_long")
    joint = cut(prompt + response, max_length)
    answer = cut(response, max_length - n_prompt + 1)
    if len(joint) <= n_prompt or len(answer) < 2:
        return _Passes("nan")  # the mean over no token
    whole = tokenizer(prompt + response, verbose=False)["input_ids"]
    return _Passes("truncated" if len(whole) > max_length else "ok", joint, n_prompt, answer)


PRESETS = {"corrected": corrected_passes, "authors": authors_passes}


def _assemble(
    rows: list[Mapping[Any, Any]], statuses: list[str], sequences: list[Sequence], sums: list[float | None], preset: str
) -> pd.DataFrame:
    """Both passes of each row side by side; a row is as good as the worse of its passes."""
    nll = {name: np.full(len(rows), np.nan) for name in ("conditioned", "direct")}
    n_scored = {name: np.zeros(len(rows), dtype=np.int64) for name in ("conditioned", "direct")}
    for sequence, value in zip(sequences, sums, strict=True):
        n_scored[sequence.name][sequence.row] = len(sequence) - sequence.start
        if value is None:
            statuses[sequence.row] = "oom"
            continue
        nll[sequence.name][sequence.row] = value
        if not np.isfinite(value) and statuses[sequence.row] != "oom":
            statuses[sequence.row] = "nan"
    n = n_scored["conditioned"]
    # The authors' passes may score different numbers of tokens: both sums are stated for the conditioned one's n,
    # which leaves the two means, and so either ratio, as they are.
    direct = nll["direct"] * np.where(n == n_scored["direct"], 1.0, n / np.maximum(n_scored["direct"], 1))
    ifd = ifd_from_nll(nll["conditioned"], direct, n)
    status = np.array(statuses, dtype=object)
    if preset == "authors":
        ifd = np.where(np.isfinite(ifd) | (status == "empty"), ifd, 0.0)
    values = [[row["example_id"] for row in rows], n, nll["conditioned"], direct, ifd, status]
    return pd.DataFrame(dict(zip(IFD_COLUMNS, values, strict=True)))
