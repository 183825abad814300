"""Where this project departs from the paper and from its authors' code: one list, for the document and for the reports.

    python -m codeact_lib.tables.deviations      # writes docs/deviations.md

The list itself is `deviations.yaml`: why, one entry a point (`DEVIATIONS`), and for every profile key that changes the
method what the paper or the released code has (`SWITCHES`), so that values are read from the profiles and never copied.
Keys that only change speed, names or where things go are its `NO_METHOD`; the two name every key of a profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from codeact_lib.artifacts import atomic_write, project_root
from codeact_lib.config import Profile, load_profile, profile_names

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Deviation:
    """A point where paper, authors' code and this project differ, and what decides: `switches` and `elsewhere`."""

    point: int
    paper: str
    authors: str
    ours: str
    effect: str
    switches: Sequence[str] = ()
    elsewhere: str = ""


@dataclass(frozen=True)
class Switch:
    """A profile key that changes the method, and what the paper or the released code has for it."""

    key: str
    subject: str
    theirs: Any = NOT_STATED


_LISTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DEVIATIONS = tuple(Deviation(**row) for row in _LISTS["rows"])
SWITCHES = tuple(Switch(**switch) for switch in _LISTS["switches"])
NO_METHOD: tuple[str, ...] = tuple(_LISTS["no_method"])


def deviations_in_force(profile: Profile) -> pd.DataFrame:
    """Where a profile departs from the paper: rows of docs/deviations.md, subject, switch, both values, effect.

    A switch whose value the paper does not state, or that has no effect in this profile, is left out.
    """
    rows = []
    for switch in SWITCHES:
        here = _value(profile, switch.key)
        idle = profile.tuning == "full" and switch.key in _LISTS["lora"]
        if idle or switch.theirs in (NOT_STATED, here):
            continue
        reasons = [entry for entry in DEVIATIONS if switch.key in entry.switches]
        points = ", ".join(str(entry.point) for entry in reasons) or "-"
        effect = ". ".join(entry.effect for entry in reasons) or "scale only"
        rows.append((points, switch.subject, switch.key, _words(switch.theirs), _words(here), effect))
    return pd.DataFrame(rows, columns=["point", "subject", "switch", "paper", "here", "effect"])


def _value(profile: Profile, key: str) -> Any:
    """A key as it takes effect, short enough for a table; the preset `authors` overrules two others."""
    value = getattr(profile, key)
    match key:
        case "isolate" if profile.preset == "authors":
            return False
        case "packing_scope" if profile.preset == "authors":
            return "batch"
        case "arms":
            return [f"{arm.policy} {arm.ratio:.0%} {arm.strategy}" for arm in value]
        case "models":
            return [f"{spec.label} {spec.size}" for spec in value]
        case "datasets":
            return [spec.label for spec in value]
        case "seeds":
            return len(value)
        case "scorer":
            return value and value.path
        case "benchmarks":
            return [Path(name).name for name in value]
        case "embedding_model":
            return Path(value).name
    return value


def _words(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    return str(value)


def deviations_document() -> str:
    """The text of docs/deviations.md."""
    names = sorted(profile_names(), key=lambda name: name != "paper")
    profiles = [load_profile(name) for name in names]
    points = [["#", "Paper says", "Authors' code does", "We do", "Switch", "Effect"]]
    for entry in DEVIATIONS:
        points.append([str(entry.point), entry.paper, entry.authors, entry.ours, _switch_cell(entry), entry.effect])
    values = [["Switch", "What it is", "Paper or authors' code", *names, "Row"]]
    for switch in SWITCHES:
        here = [_words(_value(profile, switch.key)) for profile in profiles]
        rows = ", ".join(str(entry.point) for entry in DEVIATIONS if switch.key in entry.switches)
        values.append([f"`{switch.key}`", switch.subject, _words(switch.theirs), *here, rows])
    return "\n".join([_LISTS["head"], _pipe_table(points), _LISTS["values_head"], _pipe_table(values)])


def _switch_cell(entry: Deviation) -> str:
    """Keys that decide, each with the authors' value where that is one plain value, and what else decides."""
    theirs = {switch.key: switch.theirs for switch in SWITCHES}
    keys = []
    for key in entry.switches:
        plain = theirs[key] != NOT_STATED and isinstance(theirs[key], str | int | float)
        keys.append(f"`{key}: {_words(theirs[key])}`" if plain else f"`{key}`")
    return "; ".join(filter(None, [", ".join(keys), entry.elsewhere]))


def _pipe_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    with atomic_write(project_root() / "docs" / "deviations.md") as document:
        document.write(deviations_document())
