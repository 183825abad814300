"""The page that ``codeact select`` leaves beside the chosen rows: what was taken, what was dropped, and why.

One file with everything inside it: no request leaves the page.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from codeact_lib import figures
from codeact_lib.artifacts import atomic_write
from codeact_lib.measure import environment_facts
from codeact_lib.sampling import USABLE
from codeact_lib.tables.render import _template
from codeact_lib.tables.report import ReportFigure

SHOWN_DROPPED = 40  # unusable rows listed on the page; rows.csv has them all
SHOWN_LEAKS = 20


def write_selection_report(path, selection):
    """Write the page of a ``select.Selection`` to ``path``; returns the path."""
    page = _template("selection.html.j2").render(
        source=selection.validation.source,
        summary=_summary(selection),
        fates=_fates(selection),
        dropped=selection.validation.dropped.head(SHOWN_DROPPED).to_dict("records"),
        n_dropped=len(selection.validation.dropped),
        cards=_cards(selection),
        diagnostics=selection.diagnostics,
        stability=_stability(selection.diagnostics),
        policies=selection.comparison.summary.to_dict("records"),
        overlap=selection.comparison.overlap[selection.settings.policy].to_dict(),
        policy=selection.settings.policy,
        leaks=selection.leak_counts().to_dict("records"),
        worst_leaks=_worst_leaks(selection),
        unchecked=selection.unchecked,
        drawings=_drawings(selection),
        provenance=_provenance(selection),
    )
    with atomic_write(path) as file:
        file.write(page)
    return Path(path)


def _summary(selection):
    """The findings in sentences, most important first."""
    kept, scored, read = len(selection.chosen), selection.scored, selection.validation.n_read
    usable = scored[scored["status"].isin(USABLE)]
    misleading = int((usable["ifd"] >= 1).sum())
    sentences = [
        f"{kept:,} of {read:,} rows were chosen ({kept / read:.0%}), policy {selection.settings.policy}, "
        f"ratio {selection.settings.ratio:g}.",
        f"{len(selection.validation.dropped):,} rows could not be used; {len(scored) - len(usable):,} have no score.",
        f"{misleading:,} rows have IFD of 1 or more: their instruction does not help to predict the answer.",
    ]
    if misleading > len(usable) / 2:
        sentences[-1] += (
            " As these are more than half of the scored rows, doubt the scorer first: is the model strong enough for "
            f"such texts, and is {selection.settings.template} its template?"
        )
    if kept:
        chosen = scored.iloc[selection.comparison.chosen[selection.settings.policy]]
        sentences.append(
            f"Median IFD {usable['ifd'].median():.2f} among the scored, {chosen['ifd'].median():.2f} among the chosen "
            f"rows; median answer {usable['n_response_tokens'].median():.0f} and "
            f"{chosen['n_response_tokens'].median():.0f} tokens."
        )
    return sentences + _warnings(selection)


def _warnings(selection):
    """What a reader should know before trusting the selection."""
    cut, counts = selection.diagnostics["cut_instructions"], selection.leak_counts()
    found = []
    if cut:
        share = cut / len(selection.scored)
        found.append(f"{cut:,} instructions ({share:.1%}) are longer than the embedding model reads and were cut.")
    for line in counts[(counts["set"] == "chosen") & (counts["leaking_rows"] > 0)].itertuples():
        found.append(f"{line.leaking_rows:,} chosen rows hold tasks of {line.benchmark}: see Benchmark leaks.")
    return found


def _fates(selection):
    """[(reason, rows)] over all rows of the source, the kept first, then by size."""
    rows = selection.every_row()
    kinds = rows["reason"].str.partition(":")[0]
    counts = rows.assign(kind=kinds).groupby(["kept", "kind"]).size().rename("rows").reset_index()
    counts = counts.sort_values(["kept", "rows"], ascending=False, kind="stable")
    counts["kind"] = counts["kind"].str.replace(">=", "≥")
    return [("kept" if line.kept else "dropped", line.kind, line.rows) for line in counts.itertuples()]


def _cards(selection):
    """One dict a cluster: the card, and how many of its rows were kept at which IFD."""
    table = selection.table
    kept = table[table["keep"]].groupby("cluster")["ifd"].agg(["size", "min"])
    median = table.groupby("cluster")["ifd"].median()
    cards = []
    for card in selection.cards.to_dict("records"):
        cluster = card["cluster"]
        size, lowest = kept.loc[cluster] if cluster in kept.index else (0, float("nan"))
        examples = [_shortened(" ".join(text.split())) for text in card["examples"]]
        facts = {"kept": int(size), "lowest": lowest, "median": median[cluster]}
        cards.append({**card, **facts, "examples": examples, "keywords": ", ".join(card["keywords"])})
    return cards


def _shortened(text, length=220):
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def _stability(diagnostics):
    values = [line["adjusted_rand_index"] for line in diagnostics["stability"]]
    return {"mean": sum(values) / len(values), "lowest": min(values)} if values else None


def _worst_leaks(selection):
    chosen = set(selection.chosen["example_id"])
    lines = [line for found in selection.leaks.values() for line in found.to_dict("records")]
    lines = [{**line, "chosen": line["example_id"] in chosen} for line in lines]
    return sorted(lines, key=lambda line: (not line["chosen"], -line["share"]))[:SHOWN_LEAKS]


def _drawings(selection):
    """name -> SVG of each figure."""
    scored, table = selection.scored, selection.table
    why = table["reason"].str.partition(":")[0].where(~table["keep"], "kept")
    why = why.mask(why.str.startswith("status"), "no score").str.replace(">=", "≥")
    counts = table.groupby(["cluster", why]).size().unstack(fill_value=0)
    kept = counts.pop("kept") if "kept" in counts else counts.sum(axis=1) * 0
    names = sorted(counts, key=lambda name: name.startswith(("IFD", "no score")))  # lost by comparison first
    drawn = {
        "ifd": figures.ifd_histogram(scored["ifd"], scored["cluster"]),
        "length": figures.ifd_against_length(scored["ifd"], scored["n_response_tokens"], table["keep"]),
        "clusters": figures.selection_bars(kept, {name: counts[name] for name in names}, labels=counts.index),
        "map": figures.cluster_map(scored["x"], scored["y"], scored["cluster"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        return {name: _inline(figure, Path(folder) / name) for name, figure in drawn.items()}


_ALT = {
    "ifd": "Histogram of IFD, and its quantiles in each cluster",
    "length": "IFD against the length of the answer, chosen rows in blue",
    "clusters": "Rows kept and dropped in each cluster",
    "map": "Map of the clusters",
}


def _inline(figure, stem):
    (path,) = figures.save_figure(figure, stem, formats=("svg",))
    return ReportFigure(path, _ALT[stem.name]).inline()


def _provenance(selection):
    """Settings that were given or matter, versions and hardware; local files by name, never by their folder."""
    settings = selection.settings.model_dump(exclude_none=True, exclude={"columns"})
    named: dict[str, Any] = {"columns": [f"{kind}: {name}" for kind, name in vars(selection.columns).items() if name]}
    environment = environment_facts()
    named |= settings | {"packages": [f"{name} {version}" for name, version in environment["packages"].items()]}
    named["hardware"] = f"{environment['cpu']}, {environment['cores']} cores, GPU: {environment['gpu'] or 'none'}"
    return {name.replace("_", " "): _words(value) for name, value in named.items() if value != ()}


def _words(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return Path(value).name if isinstance(value, str) and Path(value).exists() else str(value)
