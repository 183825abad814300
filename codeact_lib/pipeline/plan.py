"""The grid: every stage execution of a profile in order, which of them are wanted, and the lines that show it."""

import fnmatch
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codeact_lib.config import MINI_MODEL, Run
from codeact_lib.errors import ProfileError
from codeact_lib.pipeline.stages import STAGES, TABLE, maker_of
from codeact_lib.pipeline.task import Project, StageTask

SIGNS = {"done": "+", "stale code": "~", "changed": "!", "damaged": "!"}


def plan(
    profile: str = "mini", overrides: str | dict = "", artifacts_dir: str = "", results_dir: str = ""
) -> list[StageTask]:
    """Every stage execution of a profile's grid, each once, in the order they run."""
    project = Project(profile, overrides, artifacts_dir, results_dir)
    tasks: dict[tuple, StageTask] = {}
    for stage, identity in [*identities(project.profile.runs()), ("06_tables", {})]:
        task = StageTask(project, stage, identity)
        # runs share data sets, scores and selections; the last of two seeds names a selection that depends on none
        tasks[stage, task.folder] = task
    return list(tasks.values())


def identities(runs: Sequence[Run]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, the notebook parameters that name it) of all that runs need, stage by stage; repeats are not dropped."""
    for stage in STAGES[:-1]:  # the last reads all runs at once
        for run in runs:
            if stage == "05_eval" or not run.is_base:  # an untouched base model is evaluated, nothing else
                yield stage, {name: getattr(run, name) for name in TABLE[stage]["named_by"]}


def makers(tasks: Sequence[StageTask]) -> dict[StageTask, set[StageTask]]:
    """For each task those that make what it reads."""
    made: dict[Path, StageTask] = {}
    found: dict[StageTask, set[StageTask]] = {}
    for task in tasks:  # in order, so what a task reads was made by one before it
        found[task] = set()
        for path in task.inputs.values():
            found[task].update(made[place] for place in (path, *path.parents) if place in made)
        made[task.folder] = task  # 06 comes last: its folder holds what 05 makes
        if task.elsewhere:
            made[task.elsewhere] = task
    return found


def filter_tasks(
    tasks: Sequence[StageTask], first: str = "", only: Sequence[str] = (), runs: Sequence[str] = ()
) -> list[StageTask]:
    """The tasks from stage `first` on, of the stages `only` (by prefix: `04`), and what the `runs` need."""
    for prefix in (first, *only):
        if not any(stage.startswith(prefix) for stage in STAGES):
            raise ProfileError(f"No stage starts with {prefix!r}; the stages are {', '.join(STAGES)}.")
    wanted = of_runs(tasks, runs) if runs else tasks
    # every text starts with "", and none with (): without `only` all stages are meant
    chosen = [task for task in wanted if task.stage >= first and task.stage.startswith(tuple(only) or "")]
    if not chosen:
        raise ProfileError(f"No stage from {first or STAGES[0][:2]} on is one of {', '.join(only)}: nothing to run.")
    return chosen


def of_runs(tasks: Sequence[StageTask], patterns: Sequence[str]) -> list[StageTask]:
    """The training and the evaluation of each run whose run_id matches a pattern, what they read from, and 06."""
    needed: set[StageTask] = set()
    for pattern in patterns:
        matching = {task for task in tasks if task.run and fnmatch.fnmatchcase(task.run.run_id, pattern)}
        if not matching:
            raise ProfileError(f"--runs {pattern}: no run_id of this plan matches; `codeact runs` lists them.")
        needed |= matching
    sources = makers(tasks)
    for task in reversed(tasks):
        if task in needed:
            needed |= sources[task]
    return [task for task in tasks if task in needed or task.stage == "06_tables"]


def named(tasks: Sequence[StageTask], patterns: Sequence[str]) -> list[StageTask]:
    """The tasks a `--force` names: by stage prefix (`04`), data set, model, run_id, or `all`."""
    found: set[StageTask] = set()
    for pattern in patterns:
        matching = set()
        for task in tasks:
            if pattern in ("all", *map(str, task.identity.values())) or task.stage.startswith(pattern):
                matching.add(task)
        if not matching:
            raise ProfileError(f"--force {pattern}: no stage or run of this plan is called so; see `codeact plan`.")
        found |= matching
    return [task for task in tasks if task in found]


def plan_lines(tasks: Sequence[StageTask]) -> Iterator[str]:
    """The graph of stages as lines of text: per stage what it reads, per execution its state and why."""
    states = {task: task.state() for task in tasks}
    done = sum(state.is_done for state in states.values())
    yield f"profile {tasks[0].profile.name}: {len(tasks)} stages, {done} done, {len(tasks) - done} to run"
    for stage in STAGES:
        group = [task for task in tasks if task.stage == stage]
        if not group:
            continue
        reads = {maker_of(name) or name.split()[0].replace("_", " ") for task in group for name in task.inputs}
        yield f"{stage}  <- {', '.join(sorted(reads)) or 'the instruction set'}"
        for task in group:
            state, reason = states[task]
            name = task.title.removeprefix(stage).strip() or task.profile.name
            yield f"    {SIGNS.get(state, '-')} {state:10}  {name}  ({reason})"


def estimate_lines(tasks: Sequence[StageTask], gpu: str = "") -> list[str]:
    """What the plan will cost, as lines of text; none for the mini model, whose runs take minutes."""
    if all(spec.path == MINI_MODEL for spec in tasks[0].profile.models):
        return []
    # torch and transformers come with it, 2 to 5 s: only a plan that is estimated waits for them
    estimates = importlib.import_module("codeact_lib.pipeline.estimates")
    return list(estimates.cost_lines(tasks[0].profile, tasks[0].paths, gpu))
