"""From a number in a table back to what it was measured on: `codeact explain <run_id or table cell>`."""

import csv
import json

from codeact_lib.artifacts import RunPaths, StageManifest
from codeact_lib.config import Run
from codeact_lib.errors import ArtifactError, ProfileError
from codeact_lib.pipeline.plan import identities
from codeact_lib.pipeline.task import Project, StageTask
from codeact_lib.tables import load_metrics, run_facts
from codeact_lib.tables.results import RunRecord

CELL = "a cell is TABLE:ROW:COLUMN with the row counted from 1 and the column of the CSV, e.g. rq1:31:humaneval_plus"
WITHOUT_A_RUN = {
    "paper": "reported in arXiv 2408.02193 (results/reported), not measured here",
    "follow-up": "reported in arXiv 2504.12687 (results/reported), not measured here",
    "measured": "not run",
}


def explain(
    what: str, *, profile: str = "mini", overrides: str | dict = "", artifacts_dir: str = "", results_dir: str = ""
) -> list[str]:
    """The chain behind a run id or a table cell, as lines: value, metrics, stages with parameters and inputs, machine.

    `what` is a run id or `TABLE:ROW:COLUMN`. Raises ProfileError or ArtifactError saying what exists instead.
    """
    project = Project(profile, overrides, artifacts_dir, results_dir)
    paths = project.paths
    lines: list[str] = []
    run_ids = [what]
    if ":" in what:
        lines, run_ids = _cell(paths, what)
    for run_id in run_ids:
        run = project.profile.run(run_id)  # an unknown name is refused with the nearest known one
        records = load_metrics(paths.results / "metrics", [run_id])
        if not records:
            raise ArtifactError(f"{run_id} has no metrics in {paths.shown(paths.results)}: it was not run yet.")
        facts = run_facts(records[0])["facts"]
        environment = records[0]["provenance"]["environment"]
        packages = [f"{name} {version}" for name, version in environment["packages"].items()]
        facts["versions"] = ", ".join([f"python {environment['python']}", *packages, environment["platform"]])
        lines += [f"run {run_id}", f"  metrics  {paths.shown(paths.metrics(run_id))}"]
        lines += [f"  {name:<9} {value}" for name, value in facts.items() if name != "stage keys"]
        lines += _stages(project, run, records[0])
    return lines


def _cell(paths: RunPaths, what: str) -> tuple[list[str], list[str]]:
    """What a cell says, and the runs it comes from (none: it is reported, not measured)."""
    table, _, rest = what.partition(":")
    number, _, column = rest.partition(":")
    path = paths.tables_dir / f"{table}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in paths.tables_dir.glob("*.csv"))) or "none yet"
        where = paths.shown(paths.tables_dir)
        raise ArtifactError(f"no table is called {table!r} in {where} (there: {known}); {CELL}.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not number.isdigit() or not 1 <= int(number) <= len(rows):
        raise ProfileError(f"{table} has rows 1 to {len(rows)}, not {number!r}; {CELL}.")
    row = rows[int(number) - 1]
    if column not in row:
        raise ProfileError(f"{table} has no column {column!r}; it has {', '.join(row)}.")
    lines = [f"{what} = {row[column] or 'empty'}"]
    parts = {part: row.get(f"{column}_{part}") for part in ("k", "n", "low", "high")}
    if all(parts.values()):
        lines.append("  {k} of {n} tasks solved, 95% interval {low} to {high}".format(**parts))
    named = f"{row.get('run_id') or ''}; {row.get('other_run_id') or ''}"
    run_ids = [run_id for run_id in named.split("; ") if run_id]
    if len(run_ids) > 1:
        lines.append(f"  taken from {len(run_ids)} runs: {', '.join(run_ids)}")
    if not run_ids:
        lines.append(f"  {WITHOUT_A_RUN.get(row.get('source', ''), 'not run')}")
    return lines, run_ids


def _stages(project: Project, run: Run, record: RunRecord) -> list[str]:
    """Each stage behind the run: its manifest where the artifacts are at hand, else the copy kept with the metrics."""
    lines = []
    kept = record["provenance"].get("stages", {})
    for stage, identity in identities([run]):
        task = StageTask(project, stage, identity)
        lines.append(f"stage {task.title}")
        if task.manifest_path.is_file():
            facts = vars(StageManifest.read(task.manifest_path))
            lines.append(f"  manifest   {task.paths.shown(task.manifest_path)}")
        else:
            facts = kept.get(stage, {"key": record["provenance"]["keys"].get(stage, "unknown")})
            lines.append("  manifest   not here (its artifacts were not kept); this is what the metrics recorded")
        for name, value in facts.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"  {name:<10} {text}")
    return lines
