"""`codeact select`: choose the rows of one's own instruction set, without notebooks.

    codeact select data.jsonl --model deepseek-ai/deepseek-coder-1.3b-base --ratio 0.4 --out chosen.jsonl

    data.jsonl -> read and check -> embed and cluster -> score IFD -> choose -> chosen.jsonl, report.html, exports

Every step keeps its result in `<out>.work`. The same command again, after a kill or not, reads what is there and gives
the identical file; another ratio or policy chooses anew within seconds; another model scores anew and leaves the rest.
Embeddings and scores are kept piece by piece, so a kill costs one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers

from codeact_lib import artifacts
from codeact_lib.artifacts import read_frame, sha256_json, write_frame
from codeact_lib.config import MINI_MODEL
from codeact_lib.data.instructions import ValidationReport, columns_of, load_instructions
from codeact_lib.data.overlap import LEAK_COLUMNS, drop_leaks, find_leaks
from codeact_lib.data.rows import Columns
from codeact_lib.embedding import cluster_rows
from codeact_lib.errors import CodeActError, DataError
from codeact_lib.evaluation.benchmarks import load_benchmark
from codeact_lib.ifd import score_rows
from codeact_lib.prompts import get_template
from codeact_lib.sampling import POLICIES, choose, compare_policies
from codeact_lib.select.export import check_outputs, plain, write_chosen
from codeact_lib.select.report import write_selection_report
from codeact_lib.select.settings import Selection, SelectSettings, checked_settings


def select_rows(
    data: str | Path,
    *,
    out: str | Path,
    report: str | Path | None = None,
    exports: Sequence[str] = (),
    work_dir: str | Path | None = None,
    say: Callable[[str], object] = print,
    **settings: Any,
) -> Selection:
    """Choose rows of an instruction set and write them.

    Args:
        data: a file, a built-in set or a hub data set, as in `data.load_instructions`.
        out: file for the chosen rows (`export.OUT_FORMATS`), in order of selection: their columns and `ADDED_COLUMNS`.
        report: HTML file that shows what was chosen and what was dropped.
        exports: any of `export.EXPORTS`; each is a folder `<out>-<layout>` beside `out`.
        work_dir: where the steps keep their results, `<out>.work` by default. It also holds `rows.csv`: every row of
            the source with its fate.
        settings: the fields of `SelectSettings`; `model` has no default.

    Raises:
        CodeActError: a setting, the data or the model cannot be used; another process works in the same folder.
    """
    checked = checked_settings(settings)
    out = Path(out)
    check_outputs(out, exports)
    kept = _KeptResults(artifacts.make_folder(work_dir or f"{out}.work"), say)
    busy = f"Another process is choosing rows in {kept.folder}: wait for it, stop it, or take another --work-dir."
    with artifacts.locked(kept.folder / ".lock", busy):
        selection = _select(data, checked, kept)
        chosen = selection.chosen
        selection.files += write_chosen(data, checked.data_revision, chosen, selection.columns, out, exports)
        if report:
            selection.files.append(write_selection_report(report, selection))
        selection.files.append(kept.folder / "rows.csv")
        write_frame(selection.files[-1], selection.every_row())
    say(f"{len(chosen):,} of {selection.validation.n_read:,} rows chosen")
    for path in selection.files:
        say(f"wrote {path}")
    return selection


def _select(data: str | Path, settings: SelectSettings, kept: _KeptResults) -> Selection:
    # Bars that count a model's tensors, and a missing 4-bit kernel that nothing here needs, would drown the messages.
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel("ERROR")
    columns = settings.columns or columns_of(data, settings.data_revision)
    reading = settings.model_dump(include={"limit", "max_characters", "near_duplicates"})
    source_key = sha256_json([kept.identity(data, settings.data_revision), vars(columns), reading])
    examples, validation = _read(data, columns, reading, settings.data_revision, source_key, kept)
    leaks, unchecked = _find_leaks(examples, source_key, settings, kept)
    pool = examples
    if settings.drop_leaks:
        pool = drop_leaks(pool, pd.concat([*leaks.values(), pd.DataFrame(columns=LEAK_COLUMNS)]))
    if pool.empty:
        raise DataError(f"{data}: every usable row holds a benchmark task. Choose without --drop-leaks.")
    # The ids are in the key: other benchmarks may drop other rows of the same source.
    pool_key = sha256_json([source_key, pool["example_id"].tolist()])
    clusters, cards, diagnostics = _cluster(pool, pool_key, settings, kept)
    scores = _score(pool, pool_key, settings, kept)
    scored = scores.merge(clusters, on="example_id", validate="one_to_one")
    how = {"preset": settings.preset, "quota": settings.quota}
    # "full" takes more rows than the others, "hard" the same as "ifd".
    others = [policy for policy in POLICIES if policy not in (settings.policy, "full", "hard")]
    return Selection(
        settings=settings,
        columns=columns,
        validation=validation,
        examples=examples,
        scored=scored,
        table=choose(settings.policy, scored, settings.ratio, settings.seed, **how),
        cards=cards,
        diagnostics=diagnostics,
        leaks=leaks,
        unchecked=unchecked,
        comparison=compare_policies(scored, settings.ratio, [settings.policy, *others], settings.seed, **how),
    )


# ---- steps, each with the key of all it depends on -------------------------------------------------------------------
@dataclass(frozen=True)
class _KeptResults:
    """The folder of results."""

    # The name of each carries a hash of all it depends on. So nothing has to be thrown away when a setting changes, and
    # going back to an earlier setting finds its results.
    folder: Path
    say: Callable[[str], object]

    def path(self, name: str, key: str, suffix: str = ".parquet") -> Path:
        """File of a result."""
        return self.folder / f"{name}-{key[:12]}{suffix}"

    def have(self, path: Path, what: str) -> bool:
        """Whether a result is there; says what begins, or that it was done before."""
        self.say(f"{what}: kept from before" if path.exists() else what)
        return path.exists()

    def identity(self, name: str | Path, revision: str | None) -> str | list[str | None]:
        """What identifies a data set or model: the content of a file or folder, or a hub id and its revision."""
        path = artifacts.MINI_BASE_DIR if name == MINI_MODEL else Path(name)
        if not path.exists():
            return [str(name), revision]
        return artifacts.HashCache(self.folder / ".hashes.json")(path)


def _read(
    data: str | Path, columns: Columns, reading: dict[str, Any], revision: str | None, key: str, kept: _KeptResults
) -> tuple[pd.DataFrame, ValidationReport]:
    path = kept.path("examples", key)
    dropped_path = kept.path("dropped", key)
    name = Path(data).name
    if not kept.have(path, f"read {name}"):
        keys = {f"{kind}_column": value for kind, value in vars(columns).items()}
        examples, report = load_instructions(data, revision=revision, **keys, **reading)
        write_frame(dropped_path, report.dropped)
        write_frame(path, examples.assign(row=report.rows))  # last: who finds it finds the other
    examples = read_frame(path)
    dropped = read_frame(dropped_path)
    n_read = len(examples) + len(dropped)
    validation = ValidationReport(name, n_read, len(examples), dropped, tuple(examples["row"]))
    kept.say(f"  {validation}")
    return examples, validation


def _find_leaks(
    examples: pd.DataFrame, source_key: str, settings: SelectSettings, kept: _KeptResults
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """By benchmark the rows that hold its tasks, and by benchmark why it was not looked at."""
    leaks = {}
    unchecked = {}
    for name in settings.benchmarks:
        try:
            benchmark = load_benchmark(name)
        except CodeActError as error:
            unchecked[name] = str(error)
            kept.say(f"leaks of {name} are not looked for: {error}")
            continue
        path = kept.path("leaks", sha256_json([source_key, benchmark.sha256]))
        if not kept.have(path, f"leaks of {name}"):
            write_frame(path, find_leaks(examples, benchmark.tasks))
        leaks[benchmark.name] = read_frame(path)
    return leaks, unchecked


def _cluster(
    pool: pd.DataFrame, pool_key: str, settings: SelectSettings, kept: _KeptResults
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The cluster of each row, the cards of the clusters, and what was found when they were made."""
    model, n_clusters, random_state = settings.embedding_model, settings.n_clusters, settings.cluster_random_state
    key = sha256_json([pool_key, kept.identity(model, None), n_clusters, random_state, settings.preset])
    # The preset is in the key: `authors` clusters all rows at once, however many.
    path = kept.path("clusters", key)
    cards_path = kept.path("cards", key)
    facts_path = kept.path("clustering", key, ".json")
    if not kept.have(path, f"embed with {model} and cluster"):
        options: dict[str, Any] = {"shard_dir": kept.folder / "embeddings"}
        if settings.preset == "authors":
            options["minibatch_above"] = None
        found = cluster_rows(pool["instruction"], model, n_clusters, random_state, **options)
        if found.n_cut:
            kept.say(f"  {found.n_cut:,} instructions are longer than the embedding model reads: their end is not seen")
        tables = {"by_k": found.by_k.to_dict("records"), "stability": found.stability.to_dict("records")}
        with artifacts.atomic_write(kept.path("centroids", key, ".npy"), "wb") as file:
            np.save(file, found.centroids)
        write_frame(cards_path, found.cards)
        artifacts.write_json(facts_path, plain({**found.diagnostics, "cut_instructions": found.n_cut, **tables}))
        write_frame(path, found.frame(pool["example_id"]))  # last: who finds it finds the others
    return read_frame(path), read_frame(cards_path), artifacts.read_json(facts_path)


def _score(pool: pd.DataFrame, pool_key: str, settings: SelectSettings, kept: _KeptResults) -> pd.DataFrame:
    scorer = [kept.identity(settings.model, settings.revision), get_template(settings.template).sha256]
    key = sha256_json([pool_key, [*scorer, settings.max_length, settings.preset, settings.dtype]])
    path = kept.path("ifd", key)
    if kept.have(path, f"score IFD with {settings.model}"):
        return read_frame(path)
    # Neither the size of a batch nor the number of processes is in the key: no score depends on them.
    same = {"revision", "dtype", "max_length", "preset", "tokens_per_batch", "processes"}
    options = settings.model_dump(include=same)
    options |= {"shard_dir": kept.folder / "ifd", "say": lambda line: kept.say(f"  {line}")}
    scores = score_rows(pool, settings.model, settings.template, **options)
    counts = [f"{count:,} {status}" for status, count in scores["status"].value_counts().items()]
    kept.say(f"  {', '.join(counts)}")
    if "oom" not in set(scores["status"]):  # such a row is tried again by the next call
        write_frame(path, scores)
    return scores
