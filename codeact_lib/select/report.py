"""The page that `codeact select` leaves beside the chosen rows: what was taken, what was dropped, and why.

One file with everything inside it: no request leaves the page.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from codeact_lib import figures
from codeact_lib.artifacts import atomic_write
from codeact_lib.data.overlap import leak_table
from codeact_lib.measure import environment_facts
from codeact_lib.sampling import USABLE
from codeact_lib.select.settings import Selection
from codeact_lib.tables.render import html_template
from codeact_lib.tables.report import ReportFigure

SHOWN_DROPPED = 40  # unusable rows listed on the page; rows.csv has them all
SHOWN_LEAKS = 20


def write_selection_report(path: str | Path, selection: Selection) -> Path:
    """Write the page of a selection to `path`; returns the path."""
    scored = selection.scored
    subsets = {"all rows": selection.examples["example_id"], "chosen": selection.chosen["example_id"]}
    page = html_template("selection.html.j2").render(
        selection=selection,
        usable=scored[scored["status"].isin(USABLE)],
        chosen=scored.iloc[selection.comparison.chosen[selection.settings.policy]],
        fates=_fates(selection),
        dropped=selection.validation.dropped.head(SHOWN_DROPPED).to_dict("records"),
        cards=_cards(selection),
        policies=selection.comparison.summary.to_dict("records"),
        leaks=leak_table(selection.leaks, subsets).to_dict("records"),
        worst_leaks=_worst_leaks(selection),
        drawings=_drawings(selection),
        provenance=_provenance(selection),
    )
    with atomic_write(path) as file:
        file.write(page)
    return Path(path)


def _kinds(reasons: pd.Series) -> pd.Series:
    """Reasons without their details, as the page writes them."""
    return reasons.str.partition(":")[0].str.replace(">=", "≥")


def _fates(selection: Selection) -> list[tuple[str, str, int]]:
    """Fate, reason and number of rows over all rows of the source, the kept first, then by size."""
    rows = selection.every_row()
    counts = rows.assign(kind=_kinds(rows["reason"])).groupby(["kept", "kind"]).size().rename("rows").reset_index()
    counts = counts.sort_values(["kept", "rows"], ascending=False, kind="stable")
    return [("kept" if line.kept else "dropped", line.kind, line.rows) for line in counts.itertuples()]


def _cards(selection: Selection) -> list[dict[str, Any]]:
    """The card of each cluster, and how many of its rows were kept at which IFD."""
    table = selection.table
    cards = []
    for card in selection.cards.to_dict("records"):
        rows = table[table["cluster"] == card["cluster"]]
        kept = rows[rows["keep"]]
        cards.append({**card, "kept": len(kept), "lowest": kept["ifd"].min(), "median": rows["ifd"].median()})
    return cards


def _worst_leaks(selection: Selection) -> list[dict[str, Any]]:
    """The rows that hold most of a task, the chosen ones first."""
    if not selection.leaks:
        return []
    leaks = pd.concat(list(selection.leaks.values()))
    leaks["chosen"] = leaks["example_id"].isin(selection.chosen["example_id"])
    leaks = leaks.sort_values(["chosen", "share"], ascending=False, kind="stable")
    return leaks.head(SHOWN_LEAKS).to_dict("records")


def _drawings(selection: Selection) -> dict[str, str]:
    """name -> SVG of each figure."""
    scored = selection.scored
    table = selection.table
    why = _kinds(table["reason"]).where(~table["keep"], "kept")
    why = why.mask(why.str.startswith("status"), "no score")
    counts = table.groupby(["cluster", why]).size().unstack(fill_value=0)
    kept = counts.pop("kept") if "kept" in counts else counts.sum(axis=1) * 0
    reasons = sorted(counts, key=lambda name: name.startswith(("IFD", "no score")))  # lost by comparison first
    dropped = {reason: counts[reason] for reason in reasons}
    drawn = {
        "ifd": (
            figures.ifd_histogram(scored["ifd"], scored["cluster"]),
            "Histogram of IFD, and its quantiles in each cluster",
        ),
        "length": (
            figures.ifd_against_length(scored["ifd"], scored["n_response_tokens"], table["keep"]),
            "IFD against the length of the answer, chosen rows in blue",
        ),
        "clusters": (
            figures.selection_bars(kept, dropped, labels=counts.index),
            "Rows kept and dropped in each cluster",
        ),
        "map": (figures.cluster_map(scored["x"], scored["y"], scored["cluster"]), "Map of the clusters"),
    }
    drawings = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (figure, alt) in drawn.items():
            (path,) = figures.save_figure(figure, Path(folder) / name, formats=("svg",))
            drawings[name] = ReportFigure(path, alt).inline()
    return drawings


def _provenance(selection: Selection) -> dict[str, str]:
    """Settings that were given or matter, versions and hardware; local files by name, never by their folder."""
    environment = environment_facts()
    columns = [f"{kind}: {name}" for kind, name in vars(selection.columns).items() if name]
    facts: dict[str, Any] = {"columns": columns}
    facts |= selection.settings.model_dump(exclude_none=True, exclude={"columns"})
    facts["packages"] = [f"{name} {version}" for name, version in environment["packages"].items()]
    facts["hardware"] = f"{environment['cpu']}, {environment['cores']} cores, GPU: {environment['gpu'] or 'none'}"
    return {name.replace("_", " "): _words(value) for name, value in facts.items() if value != ()}


def _words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if isinstance(value, str) and Path(value).exists():
        return Path(value).name
    return str(value)
