"""The self-contained `report.html`: every table and figure of a profile on one page that opens offline."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from codeact_lib.artifacts import atomic_write
from codeact_lib.tables.render import Table, _template, to_html


# The report
@dataclass
class ReportFigure:
    """A figure of the report: its saved SVG, a caption, and what it shows in words for those who do not see it."""

    path: Path
    caption: str
    alt: str = ""

    def inline(self) -> str:
        """The SVG element alone, scaled by the page and named for screen readers."""
        text = Path(self.path).read_text(encoding="utf-8")
        text = text[text.index("<svg") :]
        text = re.sub(r' width="([\d.]+)pt" height="[^"]*"', _natural_width, text, count=1)
        text = _own_ids(text, Path(self.path).stem)
        return text.replace(
            "<svg", f'<svg role="img" aria-label="{html.escape(self.alt or self.caption, quote=True)}"', 1
        )


def _natural_width(size: re.Match) -> str:
    """At most as wide as drawn (96 CSS pixels to 72 points), so that text has one size in all figures."""
    return f' style="max-width: {float(size.group(1)) * 96 / 72:.0f}px"'


def _own_ids(svg: str, prefix: str) -> str:
    """Ids of one drawing made its own, so that several can stand in one page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[ReportFigure],
    runs: Sequence[dict] = (),
    deviations: pd.DataFrame | None = None,
    provenance: dict[str, str] | None = None,
) -> Path:
    """One page with everything inside it: no request leaves the file. Measured rows link to the facts of their run.

    runs: ``tables.run_groups``, the facts of each run by arm. deviations: ``deviations.deviations_in_force``. Links go
    to anchors inside.
    """
    page = _template("report.html.j2").render(
        title=title,
        summary=summary,
        tables=[(table.name, table.title, to_html(table, link_runs=True)) for table in tables],
        figures=[(Path(f.path).stem, f.caption, re.split(r"[;:,.]( |$)", f.caption)[0], f.inline()) for f in figures],
        runs=runs,
        deviations=[] if deviations is None else deviations.to_dict("records"),
        provenance=provenance or {},
    )
    with atomic_write(path) as file:
        file.write(page)
    return Path(path)
