"""The self-contained `report.html`: every table and figure of a profile, and the runs behind them, on one page."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from codeact_lib.artifacts import atomic_write
from codeact_lib.config import Profile
from codeact_lib.measure import number
from codeact_lib.tables.render import TEMPLATES, Table, to_html
from codeact_lib.tables.results import RunRecord, arm_label, benchmark_stamp, hardware, measured_lines


class ReportFigure(NamedTuple):
    """A figure of the report: its saved SVG, and what it shows in words."""

    path: Path
    caption: str

    @property
    def short(self) -> str:
        """The caption's first part, for the table of contents."""
        return re.split(r"[;:,.]( |$)", self.caption)[0]

    def inline(self) -> str:
        """The SVG element alone, scaled by the page and named for screen readers."""
        text = self.path.read_text(encoding="utf-8")
        text = text[text.index("<svg") :]
        # at most as wide as drawn (96 CSS pixels to 72 points), so that text has one size in all figures
        size = re.search(r' width="([\d.]+)pt" height="[^"]*"', text)
        if size:
            text = text.replace(size[0], f' style="max-width: {float(size[1]) * 96 / 72:.0f}px"', 1)
        # ids of its own, so that several drawings can stand in one page
        prefix = self.path.stem
        text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
        text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
        return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(self.caption)}"', 1)


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[ReportFigure],
    runs: Sequence[Mapping[str, Any]] = (),
    deviations: pd.DataFrame | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """One page with everything inside it: no request leaves the file. Measured rows link to the facts of their run.

    runs: `run_groups`, the facts of each run by arm. deviations: `deviations.deviations_in_force`.
    """
    page = TEMPLATES.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        tables=tables,
        to_html=to_html,
        figures=figures,
        runs=runs,
        deviations=[] if deviations is None else deviations.to_dict("records"),
        provenance=provenance or {},
    )
    with atomic_write(path) as file:
        file.write(page)
    return Path(path)


def run_groups(metrics: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The runs of the report by arm: `{"arm", "runs": [run_facts, ...]}`, the seeds of an arm together."""
    groups = []
    for line in measured_lines(metrics):
        arm = f"{line.names['setting']}: {line.names['arm']}"
        groups.append({"arm": arm, "runs": list(map(run_facts, line.runs))})
    return groups


def run_facts(record: RunRecord) -> dict[str, Any]:
    """What the report says of one run: enough to find it again and to see that nothing was altered."""
    train, model = record["train"], record["model"]
    facts: dict[str, Any] = {"arm": arm_label(record)}
    facts["model"] = f"{model['label']} ({model['size']}), {model.get('revision') or 'no revision'}"
    if record["dataset"]:
        facts["data"] = f"{record['dataset_label']}: {record['n_train']:,} of {record['n_total']:,} rows"
    facts["seed"] = record["seed"]
    if train:
        facts["training"] = (
            f"{number(train['seconds'])} s, {train['optimizer_steps']} optimizer steps, "
            f"{train['supervised_tokens']:,} supervised tokens, {train['padding_rate']:.1%} padding, "
            f"final loss {train['final_loss']:.3f}"
        )
        facts["peak memory"] = f"{train['peak_memory_bytes'] / 2**20:,.0f} MiB ({train['peak_memory_kind']})"
    facts["benchmarks"] = benchmark_stamp(record)
    solved, protocols = [], []
    for name, judged in record["benchmarks"].items():
        base, plus = (f"{count['k']}/{count['n']}" for count in (judged["base"], judged["plus"]))
        solved.append(f"{name} {base} base, {plus} plus")
        protocols.append(f"{name}: {judged.get('protocol')}, isolation {judged.get('isolation')}")
    facts["solved"] = "; ".join(solved)
    facts["judged"] = "; ".join(protocols)
    facts["hardware"] = hardware(record)
    keys = record["provenance"].get("keys", {})
    facts["stage keys"] = ", ".join(f"{stage} {key[:12]}" for stage, key in keys.items())
    facts["metrics file, sha256"] = record.get("metrics_sha256", "-")
    return {"run_id": record["run_id"], "facts": facts}


def provenance(profile: Profile, metrics: Sequence[RunRecord]) -> dict[str, str]:
    """What all runs of a report share: profile, seeds, software, hardware, benchmarks. Dates are in the manifests."""
    pythons, packages, benchmarks = set(), set(), set()
    for record in metrics:
        environment = record["provenance"]["environment"]
        pythons.add(f"python {environment['python']}")
        packages |= {f"{name} {version}" for name, version in environment["packages"].items()}
        for name, judged in record["benchmarks"].items():
            benchmarks.add(f"{name} {judged['version']}, {judged['n']} tasks: {judged['sha256'][:16]}")
    # sorted, so that the page does not depend on the order in which the runs were read
    return {
        "profile": f"{profile.name}: {profile.description} (preset {profile.preset})",
        "seeds": ", ".join(map(str, profile.seeds)),
        "hardware": "; ".join(dict.fromkeys(map(hardware, metrics))) or "-",
        "software": ", ".join([*sorted(pythons), *sorted(packages)]),
        "benchmarks, sha256": "; ".join(sorted(benchmarks)),
    }
