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
from codeact_lib.config import AUTHORS, MINI_MODEL
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
    folder = artifacts.make_folder(work_dir or f"{out}.work")
    busy = f"Another process is choosing rows in {folder}: wait for it, stop it, or take another --work-dir."
    with artifacts.locked(folder / ".lock", busy):
        selection = _Steps(data, checked, folder, say).select()
        chosen = selection.chosen
        selection.files += write_chosen(data, checked.data_revision, chosen, selection.columns, out, exports)
        if report:
            selection.files.append(write_selection_report(report, selection))
        selection.files.append(folder / "rows.csv")
        write_frame(selection.files[-1], selection.every_row())
    say(f"{len(chosen):,} of {selection.validation.n_read:,} rows chosen")
    for path in selection.files:
        say(f"wrote {path}")
    return selection


@dataclass(frozen=True)
class _Steps:
    """The steps on one set with one group of settings, and the folder in which they keep their results."""

    # The name of each result carries a hash of all it depends on. So nothing has to be thrown away when a setting
    # changes, and going back to an earlier setting finds its results.
    data: str | Path
    settings: SelectSettings
    folder: Path
    say: Callable[[str], object]

    def select(self) -> Selection:
        """All steps, one after the other."""
        # Bars that count a model's tensors, and a missing 4-bit kernel that nothing needs, would drown the messages.
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel("ERROR")
        settings = self.settings
        columns = settings.columns or columns_of(self.data, settings.data_revision)
        reading = settings.model_dump(include={"limit", "max_characters", "near_duplicates"})
        source_key = sha256_json([self.identity(self.data, settings.data_revision), vars(columns), reading])
        examples, validation = self.read(source_key, columns, reading)
        leaks, unchecked = self.leaks(source_key, examples)
        pool = examples
        if settings.drop_leaks:
            pool = drop_leaks(pool, pd.concat([*leaks.values(), pd.DataFrame(columns=LEAK_COLUMNS)]))
        if pool.empty:
            raise DataError(f"{self.data}: every usable row holds a benchmark task. Choose without --drop-leaks.")
        # The ids are in the key: other benchmarks may drop other rows of the same source.
        pool_key = sha256_json([source_key, pool["example_id"].tolist()])
        clusters, cards, diagnostics = self.clusters(pool_key, pool)
        scored = self.scores(pool_key, pool).merge(clusters, on="example_id", validate="one_to_one")
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

    def read(self, key: str, columns: Columns, reading: dict[str, Any]) -> tuple[pd.DataFrame, ValidationReport]:
        """The usable rows, and what was left out."""
        path = self.path("examples", key)
        dropped_path = self.path("dropped", key)
        name = Path(self.data).name
        if not self.have(path, f"read {name}"):
            keys = {f"{kind}_column": value for kind, value in vars(columns).items()}
            examples, report = load_instructions(self.data, revision=self.settings.data_revision, **keys, **reading)
            write_frame(dropped_path, report.dropped)
            write_frame(path, examples.assign(row=report.rows))  # last: who finds it finds the other
        examples = read_frame(path)
        dropped = read_frame(dropped_path)
        n_read = len(examples) + len(dropped)
        validation = ValidationReport(name, n_read, len(examples), dropped, tuple(examples["row"]))
        self.say(f"  {validation}")
        return examples, validation

    def leaks(self, source_key: str, examples: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
        """By benchmark the rows that hold its tasks, and by benchmark why it was not looked at."""
        leaks = {}
        unchecked = {}
        for name in self.settings.benchmarks:
            try:
                benchmark = load_benchmark(name)
            except CodeActError as error:
                unchecked[name] = str(error)
                self.say(f"leaks of {name} are not looked for: {error}")
                continue
            path = self.path("leaks", sha256_json([source_key, benchmark.sha256]))
            if not self.have(path, f"leaks of {name}"):
                write_frame(path, find_leaks(examples, benchmark.tasks))
            leaks[benchmark.name] = read_frame(path)
        return leaks, unchecked

    def clusters(self, pool_key: str, pool: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """The cluster of each row, the cards of the clusters, and what was found when they were made."""
        settings = self.settings
        model = settings.embedding_model
        how = [settings.n_clusters, settings.cluster_random_state]
        # The preset is in the key: `authors` reads more of a text, and clusters all rows at once, however many.
        key = sha256_json([pool_key, self.identity(model, None), *how, settings.preset])
        path = self.path("clusters", key)
        cards_path = self.path("cards", key)
        facts_path = self.path("clustering", key, ".json")
        if not self.have(path, f"embed with {model} and cluster"):
            options: dict[str, Any] = {"shard_dir": self.folder / "embeddings"}
            if settings.preset == "authors":
                options |= {"minibatch_above": None, "max_length": AUTHORS["embedding_max_length"]}
            found = cluster_rows(pool["instruction"], model, *how, **options)
            if found.n_cut:
                long = f"{found.n_cut:,} instructions are longer than the embedding model reads"
                self.say(f"  {long}: their end is not seen")
            tables = {"by_k": found.by_k.to_dict("records"), "stability": found.stability.to_dict("records")}
            with artifacts.atomic_write(self.path("centroids", key, ".npy"), "wb") as file:
                np.save(file, found.centroids)
            write_frame(cards_path, found.cards)
            artifacts.write_json(facts_path, plain({**found.diagnostics, "cut_instructions": found.n_cut, **tables}))
            write_frame(path, found.frame(pool["example_id"]))  # last: who finds it finds the others
        return read_frame(path), read_frame(cards_path), artifacts.read_json(facts_path)

    def scores(self, pool_key: str, pool: pd.DataFrame) -> pd.DataFrame:
        """What `ifd.score_rows` gives for each row."""
        settings = self.settings
        scorer = [self.identity(settings.model, settings.revision), get_template(settings.template).sha256]
        key = sha256_json([pool_key, [*scorer, settings.max_length, settings.preset, settings.dtype]])
        path = self.path("ifd", key)
        if self.have(path, f"score IFD with {settings.model}"):
            return read_frame(path)
        # Neither the size of a batch nor the number of processes is in the key: no score depends on them.
        same = {"revision", "dtype", "max_length", "preset", "tokens_per_batch", "processes"}
        options = settings.model_dump(include=same)
        options |= {"shard_dir": self.folder / "ifd", "say": lambda line: self.say(f"  {line}")}
        scores = score_rows(pool, settings.model, settings.template, **options)
        counts = [f"{count:,} {status}" for status, count in scores["status"].value_counts().items()]
        self.say(f"  {', '.join(counts)}")
        if "oom" not in set(scores["status"]):  # such a row is tried again by the next call
            write_frame(path, scores)
        return scores
