"""Instruction-Following Difficulty: how much harder an answer is to predict than an instruction should leave it.

    IFD(a | q) = PPL(a | q) / PPL(a) = exp((nll_conditioned - nll_direct) / n)

with the summed negative log-likelihood (nats) of the n answer tokens after the instruction, and alone (CodeACT, arXiv
2408.02193, after Li et al., arXiv 2308.12032). Near 0: the instruction gives the answer away. Near 1: it hardly helps.
Above 1: it misleads, and the pair is probably mismatched.

    scores = score_ifd(model, tokenizer, examples, "deepseek-coder", max_length=2048, shard_dir="ifd/shards")

How it is made fast: every answer is two token sequences (with and without its prompt); all of them are sorted by length
    and cut
into batches of at most ``tokens_per_batch`` slots, padded on the right without an attention mask (a causal model never
looks right), and the language-model head, the larger half of a small model's work, runs at answer positions only, in
chunks. How it survives: each sequence's sum is one line of an append-only file; what stands there is never computed
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from codeact_lib.errors import ArtifactError, DataError, ModelError
from codeact_lib.modeling import CHUNK, _causal_lm
from codeact_lib.prompts import TEMPLATES, encode, get_template

IFD_COLUMNS = ["example_id", "n_response_tokens", "nll_conditioned", "nll_direct", "ifd", "status"]
PRESETS = ("corrected", "authors")
PASSES = ("conditioned", "direct")
PROGRESS_SECONDS = 5.0


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
    tokens_per_batch=8192,
    shard_dir=None,
    progress=False,
):
    """Score every example.

    Args:
        model: a causal language model, on whatever device and in whatever precision; NLLs are computed in float32 from
            its hidden states and added up in float64.
        tokenizer: its tokenizer; no padding token is needed.
        examples: frame or list of dicts with ``example_id, instruction, response``; the ids must differ.
        template: name in ``prompts.TEMPLATES`` or a ``PromptTemplate``; not used by ``preset="authors"``.
        max_length: tokens of prompt and answer together; a longer answer is cut (status ``truncated``).
        preset: ``corrected``: prompt and answer tokenised apart, so that both passes score the same tokens, a start
            token before the answer of the direct pass, so that its first token counts in both, and a status in place of
            a silent 0. ``authors``: what the released code does, see ``_authors_sequences``.
        kind: which ratio fills the column ``ifd``, see ``ifd_from_nll``.
        tokens_per_batch: slots of a batch, padding included. Speed and memory only: no score depends on it. A batch
            that does not fit in memory is halved, down to one row.
        shard_dir: folder for the append-only files. A second call with the same model and texts reads them and scores
            only what is missing; other models and changed texts in the same folder do no harm.
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
    make_sequences = _sequence_maker(tokenizer, template, max_length, preset)
    sequences, statuses = [], []
    for i, row in enumerate(rows):
        texts = [row[key] if isinstance(row[key], str) else "" for key in ("instruction", "response")]
        status, pair = make_sequences(*texts)
        statuses.append(status)
        sequences += [Sequence(i, name, np.array(ids, np.int32), start) for name, (ids, start) in pair.items()]
    shard = Shard(shard_dir, _model_fingerprint(model)) if shard_dir is not None else None
    sums = _score_sequences(model, sequences, [row["example_id"] for row in rows], tokens_per_batch, shard, progress)
    return _assemble(rows, statuses, sequences, sums, preset, kind)


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


@dataclass(frozen=True)
class Sequence:
    """One pass over one row: token ids (int32), of which ``ids[start:]`` are scored; ``start >= 1``."""

    row: int
    name: str  # one of PASSES
    ids: np.ndarray
    start: int

    @property
    def n_scored(self):
        return len(self.ids) - self.start


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


# ---------------------------------------------------------------------------------------------- batches


def plan_batches(lengths, tokens_per_batch):
    """Cut sequences, longest first, into batches of at most ``tokens_per_batch`` slots once padded.

    Longest first, because then a batch that does not fit in memory shows at once, and the estimate of the time left
    errs on the safe side. A sequence over the budget stands alone.

    >>> plan_batches([3, 9, 4, 5], 10)
    [[1], [3, 2], [0]]
    """
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _score_sequences(model, sequences, example_ids, tokens_per_batch, shard, progress):
    """Sum of the NLL of each sequence, in order: float, NaN, or ``None`` where memory did not suffice."""
    keys = [_sequence_key(sequence, example_ids[sequence.row]) for sequence in sequences]
    known = shard.read() if shard else {}
    sums = [known.get(key) for key in keys]
    report = _Progress(sequences, [key in known for key in keys], progress)
    with _inference(model), shard.append() if shard else _no_shard() as write:
        # Planned over all sequences, known or not: a resumed call forms the same batches and so gets the same digits.
        for batch in plan_batches([len(sequence.ids) for sequence in sequences], tokens_per_batch):
            todo = [i for i in batch if keys[i] not in known]
            started = time.monotonic()
            for i, value in zip(todo, _batch_nll(model, [sequences[i] for i in todo]), strict=True):
                sums[i] = value
            write([(keys[i], sums[i]) for i in todo if sums[i] is not None], time.monotonic() - started)
            report.add([sequences[i] for i in todo])
    return sums


def _batch_nll(model, batch):
    """NLL sums of a batch. Where memory does not suffice its halves are tried; a single row that fails gives None."""
    try:
        return _forward_nll(model, batch) if batch else []
    except RuntimeError as error:  # CUDA's and the CPU allocator's words
        if not any(words in str(error) for words in ("out of memory", "not enough memory")):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        return [None]
    half = len(batch) // 2
    return _batch_nll(model, batch[:half]) + _batch_nll(model, batch[half:])


def _forward_nll(model, batch):
    """One forward pass: right padding, no mask, no cache, the head at scored positions only."""
    device = model.get_input_embeddings().weight.device
    ids = np.zeros((len(batch), max(len(sequence.ids) for sequence in batch)), dtype=np.int64)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = sequence.ids
    row = torch.tensor(np.repeat(range(len(batch)), [sequence.n_scored for sequence in batch]), device=device)
    # the hidden state at position t predicts token t + 1
    position = np.concatenate([np.arange(sequence.start - 1, len(sequence.ids) - 1) for sequence in batch])
    ids, position = torch.from_numpy(ids).to(device), torch.from_numpy(position).to(device)
    losses = _token_nll(_causal_lm(model), ids, row, position).double()
    sums = torch.zeros(len(batch), dtype=torch.float64, device=losses.device)
    return sums.index_add_(0, row.to(losses.device), losses).tolist()


def _token_nll(core, ids, row, position):
    """(m,) float32 NLL of token ``ids[row, position + 1]`` given what stands before it."""
    target = ids[row, position + 1]
    if _transforms_logits(core.config):
        logits = core(input_ids=ids, use_cache=False).logits[row, position]
        return F.cross_entropy(logits.float(), target, reduction="none")
    hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[row, position]
    head = core.get_output_embeddings()
    return _head_nll(head, hidden.to(head.weight.device), target.to(head.weight.device))


def _head_nll(head, hidden, target):
    """float32 NLL of (m,) tokens; the logits of ``CHUNK`` of them are all that is ever held."""
    plain = type(head) is torch.nn.Linear and hidden.dtype == head.weight.dtype == torch.float32
    if plain and hasattr(F, "linear_cross_entropy"):  # half precision would come back rounded
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
        return F.linear_cross_entropy(
            hidden, head.weight, target, linear_bias=head.bias, reduction="none", options=options
        )
    chunks = zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)
    return torch.cat([F.cross_entropy(head(h).float(), t, reduction="none") for h, t in chunks])


def _transforms_logits(config):
    """Whether the model does more to its logits than the head (soft cap, scaling): then its own logits are used."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)


@contextmanager
def _inference(model):
    """Evaluation mode without gradients; the model leaves as it came."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


# ---------------------------------------------------------------------------------------------- what a kill leaves


def _sequence_key(sequence, example_id):
    """Identity of one sum: which row and pass, and a hash of the very tokens scored, so no changed text is mistaken."""
    digest = hashlib.blake2b(np.asarray([sequence.start, *sequence.ids], dtype="<i8").tobytes(), digest_size=8)
    return f"{example_id}", sequence.name, digest.hexdigest()


_NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache")


def _model_fingerprint(model):
    """Short hash of a model's configuration, precision and the first weights of every parameter."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_IDENTITY}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in model.named_parameters():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta":
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


class Shard:
    """Append-only JSONL of one model's sums: ``{"example_id", "pass", "tokens", "nll"}``, one line a sequence.

    A line is complete when its newline is there. What a kill left behind it is cut off before anything is appended; a
    damaged line elsewhere counts as not scored.
    """

    def __init__(self, folder, fingerprint):
        self.path = Path(folder) / f"scores-{fingerprint}.jsonl"
        self.seconds_path = Path(folder) / f"seconds-{fingerprint}.txt"  # one number a batch

    def read(self):
        """``{(example_id, pass, token hash): sum}``; NaN where the model gave none."""
        if not self.path.exists():
            return {}
        known = {}
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            try:
                record = json.loads(line)
                nll = record["nll"]
                known[record["example_id"], record["pass"], record["tokens"]] = float("nan") if nll is None else nll
            except (ValueError, KeyError, TypeError):
                continue
        return known

    @contextmanager
    def append(self):
        """Yield a function that writes ``[(key, sum)]`` and the seconds they took; the system has them on return."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.path, self.seconds_path):
                _cut_half_line(path)
            file, clock = (open(p, "a", encoding="utf-8", newline="\n") for p in (self.path, self.seconds_path))
        except OSError as error:
            raise ArtifactError(f"Cannot write {self.path}: {error.strerror}. Choose another folder.") from error
        with file, clock:

            def write(results, seconds):
                file.write("".join(_line(key, value) for key, value in results))  # one write: whole batch or nothing
                file.flush()
                clock.write(f"{seconds:.4f}\n" if results else "")
                clock.flush()

            yield write
            os.fsync(file.fileno())


def _line(key, value):
    example_id, name, tokens = key
    nll = value if np.isfinite(value) else None
    return json.dumps({"example_id": example_id, "pass": name, "tokens": tokens, "nll": nll}, ensure_ascii=False) + "\n"


def _cut_half_line(path):
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with open(path, "r+b") as file:
            file.truncate(complete)


@contextmanager
def _no_shard():
    yield lambda results, seconds: None


def scoring_seconds(shard_dir):
    """Seconds the model worked on what lies in ``shard_dir``, over all attempts: a resumed job adds up."""
    lines = [line for path in Path(shard_dir).glob("seconds-*.txt") for line in path.read_text("utf-8").splitlines()]
    return float(sum(float(line) for line in lines if line.replace(".", "", 1).isdigit()))


# ---------------------------------------------------------------------------------------------- result


def _assemble(rows, statuses, sequences, sums, preset, kind):
    """Both passes of each row side by side; a row is as good as the worse of its passes."""
    statuses = list(statuses)
    nll = {name: np.full(len(rows), np.nan) for name in PASSES}
    scored = {name: np.zeros(len(rows), dtype=np.int64) for name in PASSES}
    for sequence, value in zip(sequences, sums, strict=True):
        nll[sequence.name][sequence.row] = np.nan if value is None else value
        scored[sequence.name][sequence.row] = sequence.n_scored
        if value is None or not np.isfinite(value):
            statuses[sequence.row] = "oom" if value is None or statuses[sequence.row] == "oom" else "nan"
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


class _Progress:
    """Lines such as ``IFD 812/2,400 rows, 130 rows/s, 21,000 tokens/s, 12 s left``; tokens are what time goes by."""

    def __init__(self, sequences, known, shown):
        self.total, self.done = len(sequences) / 2, sum(known) / 2
        self.tokens_left = sum(len(s.ids) for s, is_known in zip(sequences, known, strict=True) if not is_known)
        self.tokens, self.rows, self.shown = 0, 0.0, shown
        self.started = self.printed = time.monotonic()
        if shown and self.done:
            print(f"IFD: {self.done:,.0f} of {self.total:,.0f} rows were scored before", flush=True)

    def add(self, batch):
        tokens = sum(len(sequence.ids) for sequence in batch)
        self.tokens, self.tokens_left = self.tokens + tokens, self.tokens_left - tokens
        self.rows += len(batch) / 2
        if not self.shown or not batch:
            return
        now = time.monotonic()
        if now - self.printed >= PROGRESS_SECONDS or not self.tokens_left:
            self.printed, seconds = now, max(now - self.started, 1e-9)
            print(
                f"IFD {self.done + self.rows:,.0f}/{self.total:,.0f} rows, {self.rows / seconds:,.0f} rows/s, "
                f"{self.tokens / seconds:,.0f} tokens/s, {self.tokens_left * seconds / self.tokens:,.0f} s left",
                flush=True,
            )
