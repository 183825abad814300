"""Tables on paper and screen: a `Table` as CSV, Markdown, LaTeX, HTML and JSON.

A `Table` holds one set of facts twice: `frame` for machines (numbers, counts, intervals, run ids; the CSV) and
`columns` of cells for readers (text with units, bold for the best), with a heading for each block of rows.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from codeact_lib.artifacts import PACKAGE_DIR, atomic_write
from codeact_lib.tables.results import BETWEEN_RUNS, NOT_RUN, TEXTS, RunRecord

Align = Literal["left", "center"]


class Cell(NamedTuple):
    """What a reader sees at one place: `text`, below it lines of small print; `run`: the run (or "a; b") measured."""

    text: str
    small: Sequence[str] = ()
    bold: bool = False
    run: str | None = None

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.text, ", ".join(self.small))))


class Column(NamedTuple):
    """A heading with a cell for each row; numbers stand centred, words flush left."""

    heading: str
    cells: Sequence[Cell]
    align: Align = "center"


def words(heading: str, texts: Iterable[object], align: Align = "left") -> Column:
    """A column that says what its rows are."""
    return Column(heading, list(map(Cell, map(str, texts))), align)


def values(heading: str, texts: Iterable[str], runs: Iterable[str | float | None]) -> Column:
    """A column of what was found, with the run of each cell, None or NaN for a reported one."""
    cells = []
    for text, run in zip(texts, runs, strict=True):
        cells.append(Cell(text, run=run if isinstance(run, str) else None))
    return Column(heading, cells)


@dataclass
class Table:
    """One table, for machines (`frame`) and for readers (`columns`)."""

    name: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    # one heading a row of cells; consecutive rows with the same heading form a block
    blocks: Sequence[str] = ()
    notes: Sequence[str] = ()
    # records of the runs in it: the JSON says where their numbers come from
    metrics: Sequence[RunRecord] = ()
    # the rows of `frame` that the cells stand for, by default all
    rows: Sequence[int] | None = None

    @property
    def title(self) -> str:
        """What stands above the table."""
        return TEXTS["titles"].get(self.name, self.name)

    @property
    def cells(self) -> pd.DataFrame:
        """The text of all cells, small print after a line break."""
        texts = {column.heading: list(map(str, column.cells)) for column in self.columns}
        return pd.DataFrame(texts, index=self.rows)

    def by_block(self) -> list[tuple[str, list[tuple[Cell, ...]]]]:
        """Consecutive rows under the same heading, "" where there are no blocks."""
        found: list[tuple[str, list[tuple[Cell, ...]]]] = []
        rows = zip(*(column.cells for column in self.columns), strict=True)
        for heading, row in zip(self.blocks or itertools.repeat(""), rows, strict=False):
            if not found or found[-1][0] != heading:
                found.append((heading, []))
            found[-1][1].append(row)
        return found

    def _repr_markdown_(self) -> str:
        return to_markdown(self)


def write_table(table: Table, stem: str | Path) -> list[Path]:
    """Write a table as `stem`.csv, .md, .tex (booktabs), .html and .json by rename; returns the paths."""
    render = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_page, "json": to_json}
    paths = []
    for suffix, text_of in render.items():
        paths.append(Path(f"{stem}.{suffix}"))
        with atomic_write(paths[-1]) as file:
            file.write(text_of(table))
    return paths


def to_csv(table: Table) -> str:
    """Numbers without trailing zeros, yes/no for booleans, whole numbers whole even where other rows have none."""
    frame = table.frame.copy()
    for name in frame.select_dtypes(bool):
        frame[name] = np.where(frame[name], "yes", "no")
    # ten digits: more than was measured, and no 0.30000000000000004
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.10g")


def to_json(table: Table) -> str:
    """Rows as in the CSV (missing values are null), notes, and for each run in them where its numbers come from."""
    rows = json.loads(table.frame.to_json(orient="records"))
    named: set[str] = set()
    for row in rows:
        for key in ("run_id", "other_run_id"):
            named.update((row.get(key) or "").split(BETWEEN_RUNS))
    runs = {}
    for record in table.metrics:
        if record["run_id"] in named:
            file = {"metrics": f"metrics/{record['run_id']}.json", "sha256": record.get("metrics_sha256")}
            runs[record["run_id"]] = file | record["provenance"]
    facts = {"name": table.name, "title": table.title, "notes": list(table.notes), "rows": rows, "runs": runs}
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "✓": r"$\surd$", "✗": r"$\times$", "†": r"$\dagger$", "→": r"$\to$", "×": r"$\times$", "≥": r"$\geq$",
    "‡": r"$\ddagger$", "§": r"\S{}", "±": r"$\pm$",
    "<": r"$<$", ">": r"$>$", "–": "--",
})  # fmt: skip
# What is filled into HTML is escaped, and a name left out is an error.
TEMPLATES = Environment(
    loader=FileSystemLoader(PACKAGE_DIR / "templates"),
    undefined=StrictUndefined,
    autoescape=select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
)
# the spelling of quotes that files have had: markupsafe's own is another
TEMPLATES.filters["text"] = lambda text: Markup(html.escape(text))
TEMPLATES.filters["tex"] = lambda text: text.translate(_TEX)
TEMPLATES.filters["piped"] = lambda text: text.replace("|", "\\|")
# braces and percent signs are LaTeX's own
_LATEX = TEMPLATES.overlay("((*", "*))", "(((", ")))", "((#", "#))")


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown: one pipe table a block under its heading, bold and small print kept, notes below."""
    return TEMPLATES.get_template("table.md.j2").render(table=table)


def to_html(table: Table, *, link_runs: bool = False) -> str:
    """The table as an HTML fragment; `link_runs`, in the report: measured cells lead to a run, and no caption."""
    template = TEMPLATES.get_template("table_fragment.html.j2")
    return template.render(table=table, not_run=NOT_RUN, between_runs=BETWEEN_RUNS, link_runs=link_runs) + "\n"


def to_page(table: Table) -> str:
    """The table as a page of its own."""
    return TEMPLATES.get_template("table.html.j2").render(title=table.title, table=to_html(table))


def to_latex(table: Table) -> str:
    """A `table*` with booktabs rules (packages booktabs, graphicx), blocks and bold as in the other formats."""
    return _LATEX.get_template("table.tex.j2").render(table=table) + "\n"
