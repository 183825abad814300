"""Instruction-Following Difficulty: how much harder an answer is to predict than an instruction should leave it.

    IFD(a | q) = PPL(a | q) / PPL(a) = exp((nll_conditioned - nll_direct) / n)

with the summed negative log-likelihood (nats) of the n answer tokens after the instruction, and alone (CodeACT, arXiv
2408.02193, after Li et al., arXiv 2308.12032). Near 0: the instruction gives the answer away. Near 1: it hardly helps.
Above 1: it misleads, and the pair is probably mismatched.

    scores = score_ifd(model, tokenizer, examples, "deepseek-coder", max_length=2048, shard_dir="ifd/shards")

Every answer is two token sequences, with and without its prompt. How they are summed fast is told in ``nll``, how a
kill is survived in ``shards``; several GPUs share the work when the call is made under torchrun or accelerate
(``python -m codeact_lib.ifd.launch`` is such a program).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from codeact_lib.errors import DataError, ModelError
from codeact_lib.ifd.nll import Sequence, sum_nll
from codeact_lib.ifd.resume import SumShards, model_fingerprint, scoring_seconds, sequence_key  # noqa: F401
from codeact_lib.prompts import TEMPLATES, encode, get_template

IFD_COLUMNS = ["example_id", "n_response_tokens", "nll_conditioned", "nll_direct", "ifd", "status"]
PRESETS = ("corrected", "authors")
PASSES = ("conditioned", "direct")
USABLE = ("ok", "truncated")  # the other statuses say why there is no score


def ifd_from_nll(nll_conditioned, nll_direct, n_tokens, kind="ppl_ratio"):
    """IFD from stored sums.

    Two quantities go by this name, and they rank differently: ``ppl_ratio`` is the paper's, ``loss_ratio``
    (``nll_conditioned / nll_direct``) that of Cherry LLM's later code and of data-juicer.

    Args:
        nll_conditioned, nll_direct: sums in nats over the same answer tokens; scalars or (n,) arrays.
        n_tokens: number of those tokens; where it is 0 the result is NaN.

    Returns:
        float64 scalar or (n,) array.
    """
    conditioned, direct, n = (np.asarray(x, dtype=np.float64) for x in (nll_conditioned, nll_direct, n_tokens))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if kind == "ppl_ratio":
            return np.exp((conditioned - direct) / np.where(n > 0, n, np.nan))[()]
        if kind == "loss_ratio":
            return (conditioned / np.where(n > 0, direct, np.nan))[()]
    raise ValueError(f"kind {kind!r} is unknown; choose ppl_ratio or loss_ratio")


def score_ifd(
    model,
    tokenizer,
    examples,
    template,
    *,
    max_length,
    preset="corrected",
    kind="ppl_ratio",
    tokens_per_batch=None,
    shard_dir=None,
    progress=False,
):
    """Score every example.

    Args:
        model: a causal language model, on whatever device and in whatever precision, with or without adapters; NLLs are
            computed in float32 from its hidden states and added up in float64.
        tokenizer: its tokenizer; no padding token is needed.
        examples: frame or list of dicts with ``example_id, instruction, response``; the ids must differ.
        template: name in ``prompts.TEMPLATES`` or a ``PromptTemplate``; not used by ``preset="authors"``.
        max_length: tokens of prompt and answer together; a longer answer is cut (status ``truncated``).
        preset: ``corrected``: prompt and answer tokenised apart, so that both passes score the same tokens, a start
            token before the answer of the direct pass, so that its first token counts in both, and a status in place of
            a silent 0. ``authors``: what the released code does, see ``_authors_sequences``.
        kind: which ratio fills the column ``ifd``, see ``ifd_from_nll``.
        tokens_per_batch: slots of a batch, padding included; None for what suits the device. Speed and memory only: no
            score depends on it. A batch that does not fit in memory is halved, down to one row.
        shard_dir: folder for the append-only files. A second call with the same model and texts reads them and scores
            only what is missing; other models and changed texts in the same folder do no harm. In processes that
            torchrun or accelerate launched together, each makes this call, scores its share, and returns all rows.
        progress: print rows done, rows/s, tokens/s and time left, every 5 seconds.

    Returns:
        Frame ``example_id, n_response_tokens, nll_conditioned, nll_direct, ifd, status`` in the order of ``examples``.
        NLLs are sums over ``n_response_tokens``. Status: ``ok``, ``truncated``, ``prompt_too_long`` (no room for an
        answer token), ``empty`` (no text on one side), ``oom`` (one row alone does not fit in memory; tried again on
        the next call), ``nan``. The last four have IFD NaN; in ``authors`` they have 0, except ``empty``, which that
        code drops beforehand.

    Raises:
        DataError: a missing column, a repeated id. ModelError: a tokenizer without any start token.
    """
    rows = _as_rows(examples)
    statuses, sequences = _as_sequences(rows, _sequence_maker(tokenizer, template, max_length, preset))
    keys = [sequence_key(rows[s.row]["example_id"], s.name, s.ids, s.start) for s in sequences]
    shards = SumShards(shard_dir, model_fingerprint(model)) if shard_dir is not None else None
    sums = sum_nll(model, sequences, keys, tokens_per_batch=tokens_per_batch, shards=shards, progress=progress)
    return _assemble(rows, statuses, sequences, sums, preset, kind)


def scorer_agreement(scores, reference, choose):
    """How far the scores of one model can stand for those of another, on examples that both have scored.

    A model of 1B scores five times as fast as one of 7B. Whether it chooses the same rows is a question of the data and
    the two models: score a sample with both and see.

    Args:
        scores, reference: frames of ``score_ifd`` over the same examples in the same order.
        choose: function from such a frame to the numbers of the rows chosen, e.g.
            ``lambda frame: ifd_sample(frame["ifd"], 0.4)``.

    Returns:
        Dict: ``n_rows``; ``n_scored_by_both``, the rows all the rest is about; ``spearman``, the rank correlation of
        the two IFDs (NaN where one is constant); ``overlap``, the share of the reference's choice that is in the other;
        ``overlap_by_chance``, what a random choice of the same size would reach.

    Raises:
        DataError: the frames are not about the same examples.
    """
    from scipy.stats import spearmanr

    if scores["example_id"].tolist() != reference["example_id"].tolist():
        raise DataError("Both models must have scored the same examples in the same order.")
    both = scores["status"].isin(USABLE).to_numpy() & reference["status"].isin(USABLE).to_numpy()
    ours, theirs = (frame[both].reset_index(drop=True) for frame in (scores, reference))
    chosen, wanted = set(choose(ours)), set(choose(theirs))
    return {
        "n_rows": len(scores),
        "n_scored_by_both": int(both.sum()),
        "spearman": float(spearmanr(ours["ifd"], theirs["ifd"]).statistic) if len(ours) > 1 else float("nan"),
        "overlap": len(chosen & wanted) / max(len(wanted), 1),
        "overlap_by_chance": len(chosen) / max(len(ours), 1),
    }


def _as_rows(examples):
    rows = examples.to_dict("records") if isinstance(examples, pd.DataFrame) else list(examples)
    for number, row in enumerate(rows):
        missing = [key for key in ("example_id", "instruction", "response") if key not in row]
        if missing:
            raise DataError(f"Example {number} has no {missing[0]!r}: load the set with data.load_instructions.")
    seen = set()
    for number, row in enumerate(rows):
        if row["example_id"] in seen:
            raise DataError(f"Example {number} repeats the example_id {row['example_id']!r}: ids must differ.")
        seen.add(row["example_id"])
    return rows


# ---------------------------------------------------------------------------------------------- token sequences


def _as_sequences(rows, make_sequences):
    """Status of every row, and the sequences of all rows in one list."""
    statuses, sequences = [], []
    for i, row in enumerate(rows):
        texts = [row[key] if isinstance(row[key], str) else "" for key in ("instruction", "response")]
        status, pair = make_sequences(*texts)
        statuses.append(status)
        sequences += [Sequence(i, name, np.array(ids, np.int32), start) for name, (ids, start) in pair.items()]
    return statuses, sequences


def _sequence_maker(tokenizer, template, max_length, preset):
    """Function (instruction, response) -> status, ``{pass: (ids, start)}``; no pass where nothing can be scored."""
    if preset == "authors":
        return lambda q, a: _authors_sequences(tokenizer, q, a, max_length)
    if preset != "corrected":
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    template, start = get_template(template), _document_start(tokenizer)
    return lambda q, a: _corrected_sequences(tokenizer, template, start, q, a, max_length)


def _corrected_sequences(tokenizer, template, start, instruction, response, max_length):
    """The prompt of training, the answer tokenised alone; the end-of-sequence token is not part of the answer."""
    answer = encode(tokenizer, response)
    if not instruction.strip() or not response.strip() or not answer:
        return "empty", {}
    prompt = ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]) + encode(
        tokenizer, template.prompt(instruction)
    )
    room = max_length - len(prompt)
    if room <= 0:
        return "prompt_too_long", {}
    status = "truncated" if len(answer) > room else "ok"
    answer = answer[:room]
    return status, {"conditioned": (prompt + answer, len(prompt)), "direct": ([start, *answer], 1)}


def _authors_sequences(tokenizer, instruction, response, max_length):
    """What the authors' released code scores (its behaviour, for comparison; docs/deviations.md).

    The prompt's length is counted with special tokens. Prompt and answer are tokenised jointly, so tokens may merge
    across the boundary; the direct pass tokenises the answer alone and cannot score its first token (which is BOS,
    where there is one). The two passes may therefore score different tokens. A pass without any scored token makes the
    row fail.
    """
    if not instruction or not response:
        return "empty", {}
    prompt = TEMPLATES["ifd-authors"].prompt(instruction)
    n_prompt = len(_cut(tokenizer, prompt, max_length)[0])
    if n_prompt >= max_length:
        return "prompt_too_long", {}
    joint, was_cut = _cut(tokenizer, prompt + response, max_length)
    answer, _ = _cut(tokenizer, response, max_length - n_prompt + 1)
    if len(joint) <= n_prompt or len(answer) < 2:
        return "nan", {}  # the mean over no token
    return "truncated" if was_cut else "ok", {"conditioned": (joint, n_prompt), "direct": (answer, 1)}


def _cut(tokenizer, text, max_length):
    """Ids with the tokenizer's special tokens, at most ``max_length``, and whether any were cut."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) <= max_length:
        return ids, False
    return tokenizer(text, truncation=True, max_length=max_length)["input_ids"], True


def _document_start(tokenizer):
    """The token that says "a text begins here": BOS, else the end token that separated documents in pre-training."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ModelError("The tokenizer has neither a BOS nor an EOS token to start the direct pass with: set bos_token.")


# ---------------------------------------------------------------------------------------------- result


def _assemble(rows, statuses, sequences, sums, preset, kind):
    """Both passes of each row side by side; a row is as good as the worse of its passes."""
    statuses = list(statuses)
    nll = {name: np.full(len(rows), np.nan) for name in PASSES}
    scored = {name: np.zeros(len(rows), dtype=np.int64) for name in PASSES}
    for sequence, value in zip(sequences, sums, strict=True):
        i, name = sequence.row, sequence.name
        nll[name][i], scored[name][i] = np.nan if value is None else value, sequence.n_scored
        if value is None or not np.isfinite(value):
            statuses[i] = "oom" if value is None or statuses[i] == "oom" else "nan"
    n = scored["conditioned"]
    # The authors' passes may score different numbers of tokens: both sums are stated for the conditioned one's n,
    # which leaves the two means, and so either ratio, as they are.
    direct = nll["direct"] * np.where(n == scored["direct"], 1.0, n / np.maximum(scored["direct"], 1))
    ifd = ifd_from_nll(nll["conditioned"], direct, n, kind)
    status = np.array(statuses, dtype=object)
    if preset == "authors":
        ifd = np.where(np.isfinite(ifd) | (status == "empty"), ifd, 0.0)
    values = [[row["example_id"] for row in rows], n, nll["conditioned"], direct, ifd, status]
    return pd.DataFrame(dict(zip(IFD_COLUMNS, values, strict=True)))
