"""The page that `codeact select` leaves beside the chosen rows: what was taken, what was dropped, and why.

One file with everything inside it: no request leaves the page.
"""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from codeact_lib import figures
from codeact_lib.artifacts import atomic_write
from codeact_lib.data.overlap import LEAK_COLUMNS, leak_table
from codeact_lib.measure import environment_facts
from codeact_lib.sampling import USABLE
from codeact_lib.select.settings import Selection
from codeact_lib.tables.render import TEMPLATES
from codeact_lib.tables.report import ReportFigure

SHOWN_DROPPED = 40  # unusable rows listed on the page; rows.csv has them all
SHOWN_LEAKS = 20


def write_selection_report(path: str | Path, selection: Selection) -> Path:
    """Write the page of a selection to `path`; returns the path."""
    scored = selection.scored
    chosen_ids = selection.chosen["example_id"]
    fates = selection.every_row()
    fates = fates.assign(kind=_kinds(fates["reason"])).groupby(["kept", "kind"]).size().rename("rows").reset_index()
    leaks = leak_table(selection.leaks, {"all rows": selection.examples["example_id"], "chosen": chosen_ids})
    found = pd.concat(selection.leaks.values()) if selection.leaks else pd.DataFrame(columns=LEAK_COLUMNS)
    worst = found.assign(chosen=found["example_id"].isin(chosen_ids))
    page = TEMPLATES.get_template("selection.html.j2").render(
        selection=selection,
        usable=scored[scored["status"].isin(USABLE)],
        chosen=scored.iloc[selection.comparison.chosen[selection.settings.policy]],
        # The kept first, then by size; of the leaks the chosen rows first, then what holds most of a task.
        fates=fates.sort_values(["kept", "rows"], ascending=False, kind="stable"),
        worst_leaks=worst.sort_values(["chosen", "share"], ascending=False, kind="stable").head(SHOWN_LEAKS),
        dropped=selection.validation.dropped.head(SHOWN_DROPPED),
        cards=_cards(selection),
        leaks=leaks.to_dict("records"),
        drawings=_drawings(selection),
        provenance=_provenance(selection),
    )
    with atomic_write(path) as file:
        file.write(page)
    return Path(path)


def _kinds(reasons: pd.Series) -> pd.Series:
    """Reasons without their details, as the page writes them."""
    return reasons.str.partition(":")[0].str.replace(">=", "≥")


def _cards(selection: Selection) -> list[dict[str, Any]]:
    """The card of each cluster, and how many of its rows were kept at which IFD."""
    table = selection.table
    cards = []
    for card in selection.cards.to_dict("records"):
        rows = table[table["cluster"] == card["cluster"]]
        kept = rows[rows["keep"]]
        cards.append({**card, "kept": len(kept), "lowest": kept["ifd"].min(), "median": rows["ifd"].median()})
    return cards


def _drawings(selection: Selection) -> dict[str, str]:
    """name -> SVG of each figure."""
    scored = selection.scored
    table = selection.table
    why = _kinds(table["reason"]).where(~table["keep"], "kept")
    why = why.mask(why.str.startswith("status"), "no score")
    counts = table.groupby(["cluster", why]).size().unstack(fill_value=0)
    kept = counts.pop("kept") if "kept" in counts else counts.sum(axis=1) * 0
    # From the bottom up: what lost by comparison, then what was never in it.
    reasons = sorted(counts, key=lambda name: name.startswith(("IFD", "no score")))
    dropped = {reason: counts[reason] for reason in reasons}
    ifd = scored["ifd"]
    histogram = figures.ifd_histogram(ifd, scored["cluster"])
    length = figures.ifd_against_length(ifd, scored["n_response_tokens"], table["keep"])
    bars = figures.selection_bars(kept, dropped, labels=counts.index)
    plane = figures.cluster_map(scored["x"], scored["y"], scored["cluster"])
    # What each shows, in words for those who do not see it.
    drawn = {
        "ifd": (histogram, "Histogram of IFD, and its quantiles in each cluster"),
        "length": (length, "IFD against the length of the answer, chosen rows in blue"),
        "clusters": (bars, "Rows kept and dropped in each cluster"),
        "map": (plane, "Map of the clusters"),
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
