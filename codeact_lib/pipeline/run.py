"""The runner: skip what is done, run the rest once per distinct parameter set, resume after a kill."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from codeact_lib.artifacts import make_folder, write_json
from codeact_lib.errors import ArtifactError, CodeActError, require_package
from codeact_lib.measure import usable_cores
from codeact_lib.pipeline.notebook import execute, kernel_environment
from codeact_lib.pipeline.plan import estimate_lines, filter_tasks, makers, named, plan
from codeact_lib.pipeline.progress import Progress
from codeact_lib.pipeline.task import StageTask, State, run_options
from codeact_lib.processes import child_environment, pass_lines_on, start

if TYPE_CHECKING:
    from traitlets.config import Config

POLL_SECONDS = 1.0  # between two looks at what other processes hold
Say = Callable[[str], object]


def run(
    profile: str = "mini",
    overrides: str | dict = "",
    artifacts_dir: str = "",
    results_dir: str = "",
    *,
    first: str = "",
    only: Sequence[str] = (),
    runs: Sequence[str] = (),
    force: Sequence[str] = (),
    jobs: int = 1,
    dry_run: bool = False,
    verbose: bool = False,
    say: Say = print,
) -> int:
    """Run what is not done. Several processes may run in the same folders: each stage is executed by one of them.

    Args:
        profile, overrides, artifacts_dir, results_dir: see `open_stage`.
        first, only: stages by prefix.
        runs: patterns of run_ids (`fnmatch`); only these are trained and evaluated, what they need is made, and the
            tables follow when all runs are done, or when `only` names them.
        force: stages or runs to make anew although they are done.
        jobs, dry_run, verbose: as the options of `codeact run`.
        say: takes each line of progress.

    Returns the number of notebooks executed (or, in a dry run, that would be). Raises StageFailed at the first notebook
    that does not finish its stage.
    """
    everything = plan(profile, overrides, artifacts_dir, results_dir)
    tasks = filter_tasks(everything, first, only, runs)
    # tables of a grid that others still work on would say "not run" where they are a moment too early
    tables_later = bool(runs) and not only and tasks[-1].stage == "06_tables"
    forced = named(tasks, force)
    for task in tasks:
        if not task.notebook.exists():
            raise ArtifactError(
                f"{task.notebook} does not exist. `codeact run` executes the notebooks of a clone: change into its "
                f"folder, or get one: git clone {repository()}. `codeact select` and the library work without."
            )
    if dry_run:
        return _dry_run(tasks, forced, tables_later, say)
    require_package("papermill", "notebooks")
    for folder in (tasks[0].paths.artifacts, tasks[0].paths.notebooks_dir):
        make_folder(folder)  # an unwritable folder is found now, not in the first notebook
    for task in forced:
        _forget(task)
    if jobs > 1:
        options = ["--from", first]
        for name, values in (("--only", only), ("--runs", runs)):
            for value in values:
                options += [name, value]
        before = _not_done(tasks)
        run_jobs(jobs, tasks[0], options, verbose, say)
        return len(before) - len(_not_done(before))
    progress = Progress(tasks, say)
    with kernel_environment() as transport:
        _work(tasks[:-1] if tables_later else tasks, progress, transport, verbose)
        if tables_later:
            unfinished = _not_done([task for task in everything if task.stage == "05_eval"])
            if unfinished:
                say(f"06_tables follows when the other runs are done; {len(unfinished)} are not.")
            else:
                _work(tasks[-1:], progress, transport, verbose)
    progress.summary()
    return len(progress.finished)


def repository() -> str:
    """Address of the project, as the installed package's own metadata has it (pyproject.toml, [project.urls])."""
    addresses = importlib.metadata.metadata("codeact-lib").get_all("Project-URL") or []
    return next(line.split(", ")[1] for line in addresses if line.startswith("Repository, "))


def _dry_run(tasks: Sequence[StageTask], forced: Sequence[StageTask], tables_later: bool, say: Say) -> int:
    paths = tasks[0].paths
    waiting = 0
    for number, task in enumerate(tasks, 1):
        state = State("forced", "to be made anew") if task in forced else task.state()
        if task.stage == "06_tables" and tables_later:
            state = State(state.name, "follows when all runs are done")
        say(f"[{number}/{len(tasks)}] {task.title}: {state.name} ({state.reason})")
        if not state.is_done:
            waiting += 1
            say(f"    {task.papermill_line()}")
    for line in estimate_lines(tasks):
        say(line)
    say(f"{waiting} of {len(tasks)} stages would run; nothing was changed.")
    if waiting:
        folder = paths.shown(paths.notebooks_dir)
        say(f"The papermill lines work as they stand, from {paths.root}, once {folder} exists.")
    return waiting


def _not_done(tasks: Sequence[StageTask]) -> list[StageTask]:
    for task in tasks:  # other processes have written since
        task.look_again()
    return [task for task in tasks if not task.is_done()]


def _forget(task: StageTask) -> None:
    # without its manifest a stage is not done; with a key that is none `begin` clears the folder before it starts
    with _turn(task, patience=1.0) as mine:
        if not mine:
            raise ArtifactError(f"--force: {task.title} is held by {task.holder()}: wait, or stop it.")
        marker = task.work_folder / ".stage.json"
        if marker.exists():
            write_json(marker, {"stage": task.stage, "key": "made anew by --force"})
        task.manifest_path.unlink(missing_ok=True)


def run_jobs(number: int, task: StageTask, options: Sequence[str], verbose: bool, say: Say) -> None:
    """Start `codeact run` with `options` `number` times for the plan of `task`: they share the work by their locks.

    Each line a job prints is said with the job's number in front. `CodeActError` when one of them failed.
    """
    # with 4 cores and 2 jobs each computes with 2 threads, unless the user says otherwise
    environment = {"OMP_NUM_THREADS": str(max(1, usable_cores() // number)), **child_environment()}
    # a job ends when this process is gone, or it would go on with nobody watching
    command = ["-m", "codeact_lib.cli", "run", "--parent", str(os.getpid()), *options]
    command += shlex.split(run_options(**task.call))
    if verbose:
        command.append("--verbose")
    jobs = [start(command, cwd=task.paths.root, env=environment) for _ in range(number)]

    def say_as(job: int, line: str) -> None:
        say(f"{job}| {line}")

    with ThreadPoolExecutor(number) as pool:
        ends = [pool.submit(pass_lines_on, job, partial(say_as, n)) for n, job in enumerate(jobs, 1)]
        try:
            failed = [n for n, end in enumerate(ends, 1) if end.result()]
        except BaseException:
            for job in jobs:
                job.terminate()
            raise
    if failed:
        raise CodeActError(f"{len(failed)} of {number} jobs failed; the reason stands above, after {failed[0]}|")


# ---- the loop --------------------------------------------------------------------------------------------------------


def _work(tasks: Sequence[StageTask], progress: Progress, transport: Config, verbose: bool) -> None:
    """Go through what is left, as often as it takes: run what is ready and free, until all is done by someone."""
    sources = makers(tasks)
    left = list(tasks)
    while left:
        waiting: list[StageTask] = []
        for task in left:
            if sources[task].isdisjoint(waiting):  # else what it reads is still to be made, here or elsewhere
                if progress.skip(task):
                    continue
                with _turn(task) as mine:
                    if mine and not progress.skip(task):  # it may have been done between the look and the lock
                        with progress.step(task):
                            execute(task, transport, verbose)
                if mine:
                    continue
            waiting.append(task)
        if len(waiting) == len(left):
            progress.wait_for(left)
            time.sleep(POLL_SECONDS)
        left = waiting


@contextlib.contextmanager
def _turn(task: StageTask, patience: float = 0.0) -> Iterator[bool]:
    """Whether this runner may execute a notebook: no other one does, and nobody works in its folder by hand."""
    if not task.copy_lock.acquire(patience):
        yield False
        return
    try:
        yield not task.lock.holder()
    finally:
        task.copy_lock.release()
