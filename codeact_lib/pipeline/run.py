"""The runner: skip what is done, run the rest through papermill, resume after a kill.

Each notebook is executed once per distinct parameter set; its executed copy goes to `results/<profile>/notebooks`.
papermill's own verdict is not trusted (after a killed kernel every cell is marked completed): a stage has succeeded
only when its manifest is there and matches.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeact_lib import errors
from codeact_lib.artifacts import PACKAGE_DIR, atomic_write, make_folder, write_json
from codeact_lib.errors import ArtifactError, CodeActError, require_package
from codeact_lib.pipeline.jobs import run_jobs
from codeact_lib.pipeline.plan import estimate_lines, filter_tasks, makers, named, plan
from codeact_lib.pipeline.progress import Progress
from codeact_lib.pipeline.state import State
from codeact_lib.pipeline.task import StageTask, run_options

if TYPE_CHECKING:
    from traitlets.config import Config

POLL_SECONDS = 1.0  # between two looks at what other processes hold
Say = Callable[[str], object]


class StageFailed(CodeActError):
    """A notebook did not finish its stage. `details`: where, and how to go on; `traceback`: the notebook's."""

    def __init__(self, message: str, details: Sequence[str] = (), traceback: str = "") -> None:
        super().__init__(message)
        self.details = list(details)
        self.traceback = traceback


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
        jobs: how many processes work side by side on this machine.
        dry_run: say what would run, change nothing.
        verbose: stream what the notebooks print.
        say: takes each line of progress.

    Returns:
        The number of notebooks executed (or, in a dry run, that would be).

    Raises:
        StageFailed: at the first notebook that does not finish its stage.
    """
    everything = plan(profile, overrides, artifacts_dir, results_dir)
    tasks = filter_tasks(everything, first, only, runs)
    tables_later = bool(runs) and not only and tasks[-1].stage == "06_tables"
    forced = named(tasks, force) if force else []
    _require_notebooks(tasks)
    if dry_run:
        return _dry_run(tasks, forced, tables_later, say)
    require_package("papermill", "notebooks")
    for folder in (tasks[0].paths.artifacts, tasks[0].paths.notebooks_dir):
        make_folder(folder)  # an unwritable folder is found now, not in the first notebook
    for task in forced:
        _forget(task)
    if jobs > 1:
        options = [*shlex.split(run_options(tasks[0].call)), "--from", first]
        if verbose:
            options.append("--verbose")
        for stage in only:
            options += ["--only", stage]
        for pattern in runs:
            options += ["--runs", pattern]
        before = _not_done(tasks)
        run_jobs(jobs, options, cwd=tasks[0].paths.root, say=say)
        return len(before) - len(_not_done(before))
    progress = Progress(tasks, say)
    with _kernel_environment() as transport:
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


def _require_notebooks(tasks: Sequence[StageTask]) -> None:
    absent = [task.notebook for task in tasks if not task.notebook.exists()]
    if absent:
        raise ArtifactError(
            f"{absent[0]} does not exist. `codeact run` executes the notebooks of a clone: change into its folder, or "
            f"get one: git clone {repository()}. `codeact select` and the library work without."
        )


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
    """Make a stage not done, and mark what it left as foreign, so that its notebook starts from nothing."""
    with _turn(task, patience=1.0) as mine:
        if not mine:
            raise ArtifactError(f"--force: {task.title} is held by {task.holder()}: wait, or stop it.")
        marker = task.work_folder / ".stage.json"
        if marker.exists():
            write_json(marker, {"stage": task.stage, "key": "made anew by --force"})
        task.manifest_path.unlink(missing_ok=True)


# ---- the loop --------------------------------------------------------------------------------------------------------


def _work(tasks: Sequence[StageTask], progress: Progress, transport: Config, verbose: bool) -> None:
    """Go through what is left, as often as it takes: run what is ready and free, until all is done by someone."""
    sources = makers(tasks)
    left = list(tasks)
    while left:
        waiting: list[StageTask] = []
        for task in left:
            blocked = not sources[task].isdisjoint(waiting)  # what it reads is still to be made, here or elsewhere
            if blocked or not (progress.skip(task) or _run_if_free(task, progress, transport, verbose)):
                waiting.append(task)
        if len(waiting) == len(left):
            progress.wait_for(left)
            time.sleep(POLL_SECONDS)
        left = waiting


def _run_if_free(task: StageTask, progress: Progress, transport: Config, verbose: bool) -> bool:
    """Whether the task is done now; False when another process holds it."""
    with _turn(task) as mine:
        if not mine:
            return False
        if progress.skip(task):  # it was done between the look and the lock
            return True
        with progress.step(task):
            _execute(task, transport, verbose)
        return True


@contextlib.contextmanager
def _turn(task: StageTask, patience: float = 0.0) -> Iterator[bool]:
    """Whether this runner may execute a notebook: no other one does, and nobody works in its folder by hand."""
    lock = task.copy_lock
    if not lock.acquire(patience):
        yield False
        return
    try:
        yield not task.lock.holder()
    finally:
        lock.release()


# ---- one notebook ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _kernel_environment() -> Iterator[Config]:
    """What a kernel inherits: this environment's own Python, no start-up files of the user's, fixed string hashes.

    The one place where the environment is changed; it is put back in the end. Yields how to talk to kernels.
    """
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="codeact-") as scratch:
        # Sockets in the run's own folder: unlike TCP ports, no other user of a shared machine can listen in. By default
        # they lie in the working directory, where the kernels of two runs would meet.
        sockets = f"{make_folder(f'{scratch}/runtime')}/kernel"
        transport = Config()
        if os.name == "posix" and len(sockets) < 90:  # a socket's path may have about 100 characters
            transport.KernelManager = Config(transport="ipc", ip=sockets)
        ours = {
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernelspec of this environment before one in the home folder
            "JUPYTER_RUNTIME_DIR": f"{scratch}/runtime",  # works with an empty or read-only home
            "IPYTHONDIR": f"{scratch}/ipython",
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a debugger warning lands in the executed notebooks
        }
        before = {name: os.environ[name] for name in ours if name in os.environ}
        os.environ.update(ours)
        try:
            yield transport
        finally:
            for name in ours:
                del os.environ[name]
            os.environ.update(before)


def _execute(task: StageTask, transport: Config, verbose: bool) -> None:
    """Run one notebook; return only if its stage is then done."""
    import nbclient
    import papermill

    try:
        with contextlib.chdir(task.paths.root):  # so that the executed copy holds paths relative to the project
            papermill.execute_notebook(
                task.paths.shown(task.notebook),
                task.paths.shown(task.executed_notebook),
                parameters=task.notebook_parameters,
                kernel_name="python3",
                cwd="notebooks",
                progress_bar=False,
                log_output=verbose,
                stdout_file=sys.stdout if verbose else None,
                stderr_file=sys.stderr if verbose else None,
                # Colab's configuration of IPython makes kernels that ask the browser for the hub's token, and wait for
                # ever where there is none, as here (googlecolab/colabtools#4677): a plain kernel asks nobody.
                extra_arguments=["--IPKernelApp.kernel_class=ipykernel.ipkernel.IPythonKernel"],
                start_timeout=120,
                shutdown_kernel="immediate",  # a kernel that holds torch takes seconds to take itself apart
                config=transport,
            )
    except (papermill.PapermillException, nbclient.exceptions.DeadKernelError, RuntimeError, TimeoutError) as error:
        raise _failure(task, error) from error
    finally:
        _tidy(task.executed_notebook, task.paths.root)
    # sys.exit(0) in a cell, or a kernel that died in the last one, is no error to papermill
    task.look_again()
    state = task.state()
    if not state.is_done:
        reason = f"it ended without its manifest ({state.name}: {state.reason}); its kernel may have died"
        raise _failure(task, CodeActError(reason))


def _failure(task: StageTask, error: Exception) -> StageFailed:
    """The error of a notebook as one sentence, where it happened, and how to go on."""
    # papermill's own error carries the notebook's: its name, its words, its cell and its traceback
    told: Mapping[str, Any] = vars(error)
    name = told.get("ename", type(error).__name__)
    message = told.get("evalue", str(error))
    if name == "DeadKernelError":
        message = "its kernel died: killed, or out of memory"
    lines = [line for line in message.splitlines() if line.strip()] or ["no message"]
    what = lines[0].removeprefix(f"{task.title} ")
    if name not in vars(errors) and name != "DeadKernelError":
        what = f"{name}: {what}"
    details = []
    if "cell_index" in told:
        details.append(f"in cell {told['cell_index'] + 1}{_heading(task, told['cell_index'])}")
    details.append(f"executed notebook, with the traceback: {task.paths.shown(task.executed_notebook)}")
    details.append(f"to continue from here: codeact run {run_options(task.call)}")
    return StageFailed(f"{task.title} failed: {what}", details, "\n".join(told.get("traceback", [])))


def _heading(task: StageTask, cell_index: int) -> str:
    """The heading above a cell of the executed notebook, so that a reader finds it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        cells = json.loads(task.executed_notebook.read_text(encoding="utf-8"))["cells"]
        for cell in reversed(cells[: cell_index + 1]):
            for line in reversed(cell["source"]):
                if cell["cell_type"] == "markdown" and line.startswith("#"):
                    return f", under “{line.strip('# ').strip()}”"
    return ""


def _tidy(path: Path, root: Path) -> None:
    """Take this machine's folders out of an executed notebook and out of its metadata."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    places = ((sys.prefix, ".venv"), (str(PACKAGE_DIR.parent), "."), (str(root), "."), (str(Path.home()), "~"))
    for folder, instead in places:
        if folder and folder != "/":
            text = text.replace(f"{folder}/", f"{instead}/".removeprefix("./")).replace(f'"{folder}"', f'"{instead}"')
    notebook = json.loads(text)
    notebook["metadata"].get("papermill", {}).pop("environment_variables", None)
    with atomic_write(path) as file:
        json.dump(notebook, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
