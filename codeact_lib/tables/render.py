"""Tables on paper and screen: a `Table` as CSV, Markdown, LaTeX, HTML and JSON.

A `Table` holds one set of facts twice: `frame` for machines (numbers, counts, intervals, run ids; the CSV) and
`columns` of cells for readers (text with units, bold for the best), with a heading for each block of rows.
"""

from __future__ import annotations

import html
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from codeact_lib.artifacts import PACKAGE_DIR, atomic_write
from codeact_lib.tables.results import BETWEEN_RUNS, NOT_RUN

FORMATS = ("csv", "md", "tex", "html", "json")


@dataclass(frozen=True)
class Cell:
    """What a reader sees at one place: `text`, below it lines of small print; `run`: the run (or "a; b") measured."""

    text: str
    small: Sequence[str] = ()
    bold: bool = False
    run: str | None = None

    def __str__(self) -> str:
        return f"{self.text}\n{', '.join(self.small)}" if self.small else self.text


@dataclass(frozen=True)
class Column:
    """A heading with a cell for each row; numbers stand centred, words flush left."""

    heading: str
    cells: Sequence[Cell]
    align: Literal["left", "center"] = "center"


def words(heading: str, texts: Iterable[object], align: Literal["left", "center"] = "left") -> Column:
    """A column that says what its rows are."""
    cells = []
    for text in texts:
        first, *small = str(text).split("\n")
        cells.append(Cell(first, small))
    return Column(heading, cells, align)


def values(heading: str, texts: Iterable[str], runs: Iterable[str | None]) -> Column:
    """A column of what was found, with the run of each cell."""
    return Column(heading, [Cell(text, run=run) for text, run in zip(texts, runs, strict=True)])


@dataclass
class Table:
    """One table, for machines (`frame`) and for readers (`columns`).

    blocks: one heading a row of cells; consecutive rows with the same heading form a block. sources: where the numbers
    of each run come from, for the JSON (`results.run_sources`). rows: the rows of `frame` that the cells stand for,
    by default all.
    """

    name: str
    title: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    blocks: Sequence[str] = ()
    notes: Sequence[str] = ()
    sources: Mapping[str, dict] = field(default_factory=dict)
    rows: Sequence[int] | None = None

    @property
    def cells(self) -> pd.DataFrame:
        """The text of all cells, small print after a line break."""
        texts = {column.heading: list(map(str, column.cells)) for column in self.columns}
        return pd.DataFrame(texts, index=self.rows)

    @property
    def bold(self) -> pd.DataFrame:
        """Which cells are bold, in the shape of `cells`."""
        marks = {column.heading: [cell.bold for cell in column.cells] for column in self.columns}
        return pd.DataFrame(marks, index=self.rows)

    @property
    def links(self) -> list[str | None]:
        """The run of each row (several: "a; b"), None for a reported one."""
        return [next((cell.run for cell in row if cell.run), None) for row in self.by_row()]

    def is_bold(self, row: int, column: int) -> bool:
        return self.columns[column].cells[row].bold

    def runs_of(self, row: int, column: str) -> str | None:
        """What a cell was measured on; None for names and reported numbers."""
        return next(c.cells[row].run for c in self.columns if c.heading == column)

    def by_row(self) -> list[tuple[Cell, ...]]:
        return list(zip(*(column.cells for column in self.columns), strict=True))

    def by_block(self) -> list[tuple[str, list[tuple[Cell, ...]]]]:
        """Consecutive rows under the same heading, "" where there are no blocks."""
        found: list[tuple[str, list[tuple[Cell, ...]]]] = []
        rows = self.by_row()
        for heading, row in zip(self.blocks or [""] * len(rows), rows, strict=True):
            if not found or found[-1][0] != heading:
                found.append((heading, []))
            found[-1][1].append(row)
        return found

    def _repr_markdown_(self) -> str:
        return to_markdown(self)


def write_table(table: Table | pd.DataFrame, stem: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a table as `stem`.csv, .md, .tex (booktabs), .html and .json by rename; a plain frame as its text."""
    if isinstance(table, pd.DataFrame):
        columns = [words(str(name), table[name], "center") for name in table]
        table = Table(Path(stem).name, Path(stem).name, table, columns)
    render = {"md": to_markdown, "tex": to_latex, "html": _html_page, "csv": _csv, "json": to_json}
    paths = [Path(f"{stem}.{suffix}") for suffix in formats]
    for path in paths:
        with atomic_write(path) as file:
            file.write(render[path.suffix[1:]](table))
    return paths


# ---- for machines ----------------------------------------------------------------------------------------------------


def _csv(table: Table) -> str:
    """Numbers without trailing zeros, yes/no for booleans, whole numbers whole even where other rows have none."""
    text = table.frame.copy()
    for name in text.columns:
        if text[name].dtype == bool:
            text[name] = np.where(text[name], "yes", "no")
        elif text[name].dtype.kind == "f":
            text[name] = ["" if math.isnan(value) else f"{value:.10g}" for value in text[name]]
    return text.to_csv(index=False, lineterminator="\n")


def to_json(table: Table) -> str:
    """Rows as in the CSV (missing values are null), notes, and for each run in them where its numbers come from."""
    rows = json.loads(table.frame.to_json(orient="records"))
    runs: set[str] = set()
    for row in rows:
        for key in ("run_id", "other_run_id"):
            runs.update((row.get(key) or "").split(BETWEEN_RUNS))
    sources = {run_id: facts for run_id, facts in table.sources.items() if run_id in runs}
    facts = {"name": table.name, "title": table.title, "notes": list(table.notes), "rows": rows, "runs": sources}
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


# ---- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown: one pipe table a block under its heading, bold and small print kept, notes below."""
    head = _pipes(column.heading for column in table.columns)
    rule = _pipes("---" if column.align == "left" else ":-:" for column in table.columns)
    parts = [f"**{table.title}**"]
    for heading, rows in table.by_block():
        lines = [f"*{heading}*", ""] if heading else []
        lines += [head, rule, *(_pipes(map(_markdown_cell, row)) for row in rows)]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *(f"<sub>{note}</sub>" for note in table.notes)]) + "\n"


def _pipes(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    return "<br>".join([text, *(f"<sub>{line}</sub>" for line in cell.small)]).replace("|", "\\|")


# ---- HTML ------------------------------------------------------------------------------------------------------------


def to_html(table: Table, *, link_runs: bool = False) -> str:
    """The table as an HTML fragment: caption, block rows, `<strong>`; `link_runs`: measured cells lead to a run.

    With `link_runs` there is no caption: the report has a heading of its own.
    """
    kinds = {"left": "text", "center": "value"}
    template = html_template("table_fragment.html.j2")
    nothing = (NOT_RUN, "-")
    return template.render(table=table, kinds=kinds, nothing=nothing, link_runs=link_runs, anchor=run_anchor) + "\n"


def run_anchor(runs: str) -> str:
    """Id of the facts of a run, or of the arm that the first of several runs belongs to."""
    first, *others = runs.split(BETWEEN_RUNS)
    return f"{'arm' if others else 'run'}-{first}"


def html_template(name: str) -> Any:
    """A Jinja template of the package's own; what is filled in is escaped, and a name left out is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(PACKAGE_DIR / "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = lambda text: Markup(html.escape(text))  # the spelling of quotes that files have had
    return environment.get_template(name)


def _html_page(table: Table) -> str:
    return html_template("table.html.j2").render(title=table.title, table=to_html(table))


# ---- LaTeX -----------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "✓": r"$\surd$", "✗": r"$\times$", "†": r"$\dagger$", "→": r"$\to$", "×": r"$\times$", "≥": r"$\geq$",
    "‡": r"$\ddagger$", "§": r"\S{}", "±": r"$\pm$",
    "<": r"$<$", ">": r"$>$", "–": "--",
}  # fmt: skip


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found.group()], text)


def to_latex(table: Table) -> str:
    """A `table*` with booktabs rules (packages booktabs, graphicx), blocks and bold as in the other formats."""
    align = "".join(column.align[0] for column in table.columns)
    lines = [r"% \usepackage{booktabs,graphicx}", r"\begin{table*}", r"\centering"]
    lines += [rf"\caption{{{_tex(table.title)}}}", r"\resizebox{\textwidth}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines.append(" & ".join(rf"\textbf{{{_tex(column.heading)}}}" for column in table.columns) + r" \\")
    for heading, rows in table.by_block():
        if heading:
            # on two lines where it is long: one wider than the columns would make the whole table small
            parts = [rf"\emph{{{_tex(part)}}}" for part in textwrap.wrap(heading, 90)]
            lines += [r"\midrule", *(rf"\multicolumn{{{len(table.columns)}}}{{c}}{{{part}}} \\" for part in parts)]
        lines += [r"\midrule", *(" & ".join(map(_tex_cell, row)) + r" \\" for row in rows)]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"{{\par\smallskip\footnotesize\raggedright {_tex(note)}\par}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)
    if not cell.small:
        return text
    # one line: a page is scaled to its width and must not grow too high
    return rf"\shortstack{{\rule{{0pt}}{{2.8ex}}{text}\\{{\scriptsize {_tex(', '.join(cell.small))}}}}}"
