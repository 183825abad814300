"""Where this project departs from the paper and from its authors' code: one list, for the document and for the reports.

    python -m codeact_lib.tables.deviations      # writes docs/deviations.md

`deviations.yaml` is the list: why, one entry a point, and what the paper or the released code has for every profile key
that changes the method, so that values are read from the profiles and never copied. It names every key of a profile.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from codeact_lib import config
from codeact_lib.artifacts import atomic_write, project_root
from codeact_lib.tables.render import TEMPLATES

NOT_STATED = "not stated"


class Switch(NamedTuple):
    """A profile key that changes the method, and what the paper or the released code has for it."""

    key: str
    subject: str
    theirs: Any = NOT_STATED


class Deviation(NamedTuple):
    """A point where paper, authors' code and this project differ, and what decides: `switches` and `elsewhere`."""

    point: int
    paper: str
    authors: str
    ours: str
    effect: str
    switches: Sequence[str] = ()
    elsewhere: str = ""

    @property
    def decided_by(self) -> str:
        """Keys that decide, each with the authors' value where that is one plain value, and what else decides."""
        theirs = {switch.key: switch.theirs for switch in SWITCHES}
        keys = []
        for key in self.switches:
            plain = theirs[key] != NOT_STATED and isinstance(theirs[key], str | int | float)
            keys.append(f"`{key}: {_words(theirs[key])}`" if plain else f"`{key}`")
        return "; ".join(filter(None, [", ".join(keys), self.elsewhere]))


_LISTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DEVIATIONS = [Deviation(**row) for row in _LISTS["rows"]]
SWITCHES = [Switch(**switch) for switch in _LISTS["switches"]]
NO_METHOD: list[str] = _LISTS["no_method"]


def deviations_in_force(profile: config.Profile) -> pd.DataFrame:
    """Where a profile departs from the paper: rows of docs/deviations.md, subject, switch, both values, effect."""
    rows = []
    for switch in SWITCHES:
        paper = _words(switch.theirs)
        here = _value(profile, switch.key)
        # Not a departure: what the paper does not state, and LoRA's keys where all weights are trained.
        idle = profile.tuning == "full" and switch.key in _LISTS["lora"]
        if not idle and paper not in (NOT_STATED, here):
            reasons = _reasons(switch)
            points = ", ".join(str(entry.point) for entry in reasons) or "-"
            effect = ". ".join(entry.effect for entry in reasons) or "scale only"
            rows.append((points, switch.subject, switch.key, paper, here, effect))
    return pd.DataFrame(rows, columns=["point", "subject", "switch", "paper", "here", "effect"])


def _reasons(switch: Switch) -> list[Deviation]:
    return [entry for entry in DEVIATIONS if switch.key in entry.switches]


def _value(profile: config.Profile, key: str) -> str:
    # short enough for a table
    value = getattr(profile, key)
    match key:
        case "benchmarks":
            value = [Path(name).name for name in value]
        case "embedding_model":
            value = Path(value).name
    return _words(value)


def _words(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(map(_words, value))
        case dict():
            return ", ".join(map("{}: {}".format, value.keys(), value.values())) or "none"
        case config.Arm():
            return f"{value.policy} {value.ratio:.0%} {value.strategy}"
        case config.ModelSpec():
            return f"{value.label} {value.size}"
        case config.DatasetSpec():
            return value.label
        case config.ScorerSpec():
            return value.path
    return str(value)


def deviations_document() -> str:
    """The text of docs/deviations.md."""
    names = sorted(config.profile_names(), key=lambda name: name != "paper")
    profiles = list(map(config.load_profile, names))
    switches = []
    for switch in SWITCHES:
        here = [_value(profile, switch.key) for profile in profiles]
        rows = ", ".join(str(entry.point) for entry in _reasons(switch))
        switches.append((switch, _words(switch.theirs), here, rows))
    template = TEMPLATES.get_template("deviations.md.j2")
    return template.render(deviations=DEVIATIONS, switches=switches, profiles=names)


if __name__ == "__main__":
    with atomic_write(project_root() / "docs" / "deviations.md") as document:
        document.write(deviations_document())
