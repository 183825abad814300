"""Tables on paper and screen: Markdown, LaTeX, HTML and CSV of a ``Table``, and the self-contained ``report.html``.

A ``Table`` holds one set of facts twice: ``frame`` for machines (numbers, counts, intervals, run ids; the CSV) and
``cells`` for readers (text with units), with a mask for bold and a heading for each block of rows.
"""

import html
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from codeact_lib.artifacts import PACKAGE_DIR, atomic_write

FORMATS = ("csv", "md", "tex", "html", "json")
NOT_RUN = "not run"


@dataclass
class Table:
    """One table: ``frame`` as data, ``cells`` as text (after a line break: small print), ``bold`` marks of that shape.

    blocks: one heading a row of ``cells``; consecutive rows with the same heading form a block. links: what a row was
    measured on: None, a run id, several ("a; b": the seeds of an arm), or a mapping from a column to one of these with
    None for the other columns. sources: ``tables.run_sources``, for the JSON. left: columns of words, set flush left.
    names: columns that say what a row is; all others hold what was found.
    """

    name: str
    title: str
    frame: pd.DataFrame
    cells: pd.DataFrame
    bold: pd.DataFrame | None = None
    blocks: Sequence[str] = ()
    notes: Sequence[str] = ()
    links: Sequence[str | None | Mapping[str | None, str]] = ()
    left: Sequence[str] = field(
        default=("Model", "Base model", "Data type", "Arm", "Data set", "Source", "Claim", "Run")
    )
    names: Sequence[str] = (
        *("Model", "Size", "CodeACT", "Source", "Base model", "Data type", "Data num", "Arm", "Data", "Batching"),
        *("Data set", "Compared with", "Tests", "Tasks", "Seeds", "Rows", "Sampling rate", "Finding"),
    )
    sources: Mapping[str, dict] = field(default_factory=dict)

    def is_bold(self, row: int, column: int) -> bool:
        return bool(self.bold is not None and self.bold.iloc[row, column])

    def runs_of(self, row: int, column: str) -> str | None:
        """What a cell was measured on, as in ``links``; None for names and reported numbers."""
        found = self.links[row] if self.links else None
        if isinstance(found, Mapping):
            found = found.get(column, found.get(None))
        return None if column in self.names else found

    def _repr_markdown_(self) -> str:
        return to_markdown(self)


def write_table(table: Table | pd.DataFrame, stem: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a table as ``stem``.csv, .md, .tex (booktabs), .html and .json by rename; a plain frame as its text."""
    if isinstance(table, pd.DataFrame):
        table = Table(Path(stem).name, Path(stem).name, table, table.astype(str))
    render = {"md": to_markdown, "tex": to_latex, "html": _html_page, "csv": lambda t: _csv(t.frame), "json": to_json}
    paths = [Path(f"{stem}.{suffix}") for suffix in formats]
    for path in paths:
        with atomic_write(path) as file:
            file.write(render[path.suffix[1:]](table))
    return paths


def to_json(table: Table) -> str:
    """Rows as in the CSV (missing values are null), notes, and for each run in them where its numbers come from."""
    rows = json.loads(table.frame.to_json(orient="records"))
    runs = {run for row in rows for key in ("run_id", "other_run_id") for run in (row.get(key) or "").split("; ")}
    facts = {"name": table.name, "title": table.title, "notes": list(table.notes), "rows": rows}
    sources = {run_id: table.sources[run_id] for run_id in table.sources if run_id in runs}
    return json.dumps({**facts, "runs": sources}, indent=1, ensure_ascii=False) + "\n"


def _csv(frame: pd.DataFrame) -> str:
    """Numbers without trailing zeros, yes/no for booleans, whole numbers whole even where other rows have none."""
    text = frame.copy()
    for name in text.columns:
        if text[name].dtype == bool:
            text[name] = np.where(text[name], "yes", "no")
        elif text[name].dtype.kind == "f":
            text[name] = ["" if math.isnan(value) else f"{value:.10g}" for value in text[name]]
    return text.to_csv(index=False, lineterminator="\n")


def _blocks(table: Table) -> list[tuple[str, list[int]]]:
    """Consecutive rows with the same heading: [(heading, positions)]."""
    found: list[tuple[str, list[int]]] = []
    for position in range(len(table.cells)):
        heading = table.blocks[position] if table.blocks else ""
        if not found or found[-1][0] != heading:
            found.append((heading, []))
        found[-1][1].append(position)
    return found


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown: one pipe table a block under its heading, bold and small print kept, notes below."""
    columns = list(table.cells.columns)
    rule = ["---" if column in table.left else ":-:" for column in columns]
    parts = [f"**{table.title}**"]
    for heading, positions in _blocks(table):
        lines = [f"*{heading}*", ""] if heading else []
        lines += [_pipes(columns), _pipes(rule)]
        lines += [_pipes([_markdown_cell(table, row, i) for i in range(len(columns))]) for row in positions]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *(f"<sub>{note}</sub>" for note in table.notes)]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(table: Table, row: int, column: int) -> str:
    main, *small = _lines(str(table.cells.iloc[row, column]).replace("|", "\\|"))
    main = f"**{main}**" if table.is_bold(row, column) else main
    return "<br>".join([main, *(f"<sub>{part}</sub>" for part in small)])


def _lines(cell: str) -> list[str]:
    """The number, and the parts of the small print below it: short lines keep columns narrow."""
    main, _, small = str(cell).partition("\n")
    return [main, *filter(None, small.split(", "))]


def to_html(table: Table, *, link_runs: bool = False) -> str:
    """The table as an HTML fragment: caption, block rows, ``<strong>``; ``link_runs``: measured cells lead to a run."""
    columns = list(table.cells.columns)
    kinds = ["text" if column in table.left else "value" for column in columns]
    head = "".join(
        f'<th class="{kind}">{html.escape(column)}</th>' for column, kind in zip(columns, kinds, strict=True)
    )
    body = []
    for heading, positions in _blocks(table):
        if heading:
            body.append(f'<tr class="block"><td colspan="{len(columns)}"><span>{html.escape(heading)}</span></td></tr>')
        for row in positions:
            runs = [table.runs_of(row, column) if link_runs else None for column in columns]
            cells = (_html_cell(table, row, i, kinds[i], runs[i]) for i in range(len(columns)))
            body.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    rows = "\n".join(body)
    # the report has a heading of its own
    caption = "" if link_runs else f"<caption>{html.escape(table.title)}</caption>"
    return (
        f'<div class="scroll"><table>{caption}\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{rows}\n</tbody></table></div>\n<div class="notes">{notes}</div>\n'
    )


def _html_cell(table: Table, row: int, column: int, kind: str, runs: str | None) -> str:
    main, *small = (html.escape(part) for part in _lines(table.cells.iloc[row, column]))
    quiet = " quiet" if main in (NOT_RUN, "-") else ""
    main = f"<strong>{main}</strong>" if table.is_bold(row, column) else main
    if runs and not quiet:
        main = f'<a href="#{html.escape(run_anchor(runs))}">{main}</a>'
    lines = "".join(f"<small>{part}</small>" for part in small)
    return f'<td class="{kind}{quiet}">{main}{lines}</td>'


def run_anchor(runs: str) -> str:
    """Id of the facts of a run, or of the arm that the first of several runs belongs to."""
    first, *others = runs.split("; ")
    return f"{'arm' if others else 'run'}-{first}"


def _template(name: str):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = PACKAGE_DIR / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _html_page(table: Table) -> str:
    return _template("table.html.j2").render(title=table.title, table=to_html(table))


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
    """A ``table*`` with booktabs rules (packages booktabs, graphicx), blocks and bold as in the other formats."""
    columns = list(table.cells.columns)
    align = "".join("l" if column in table.left else "c" for column in columns)
    body = []
    for heading, positions in _blocks(table):
        if heading:
            body += [r"\midrule", *_tex_heading(heading, len(columns))]
        body += [
            r"\midrule",
            *(" & ".join(_tex_cell(table, row, i) for i in range(len(columns))) + r" \\" for row in positions),
        ]
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(rf"\textbf{{{_tex(column)}}}" for column in columns) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *(rf"{{\par\smallskip\footnotesize\raggedright {_tex(note)}\par}}" for note in table.notes),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _tex_cell(table: Table, row: int, column: int) -> str:
    main, *small = (_tex(part) for part in _lines(table.cells.iloc[row, column]))
    main = rf"\textbf{{{main}}}" if table.is_bold(row, column) else main
    # one line: a page is scaled to its width and must not grow too high
    return rf"\shortstack{{\rule{{0pt}}{{2.8ex}}{main}\\{{\scriptsize {', '.join(small)}}}}}" if small else main


def _tex_heading(heading: str, n_columns: int) -> list[str]:
    """A long heading on two lines: one wider than the columns would make the whole table small."""
    parts = textwrap.wrap(heading, 90)
    return [rf"\multicolumn{{{n_columns}}}{{c}}{{\emph{{{_tex(part)}}}}} \\" for part in parts]
