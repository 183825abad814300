"""The grid of stages in order, and the runner: skip what is done, run the rest through papermill, resume after a kill.

    for task in plan("mini"):                    # in the order they run
        print(task.title, *task.state())         # 02_ifd mini-evol/mini-base missing ...
    run("mini")                                  # executes what is not done, notebook by notebook

Each notebook is executed once per distinct parameter set; its executed copy goes to ``results/<profile>/notebooks``.
papermill's own verdict is not trusted (after a killed kernel every cell is marked completed): a stage has succeeded
only when its manifest is there and matches.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from codeact_lib import errors
from codeact_lib.artifacts import PACKAGE_DIR, StageManifest, atomic_write, make_folder, write_json
from codeact_lib.config import load_profile
from codeact_lib.errors import ArtifactError, CodeActError, ProfileError, require_package
from codeact_lib.stages import STAGES, StageTask, clock, maker_of, open_stage, run_options, short_path

__all__ = ["STAGES", "StageFailed", "StageTask", "open_stage", "plan", "run"]

REPOSITORY = "https://github.com/codeact-repro/codeact"
# How long the stages of mini take relative to each other: the first guess of the time left, scaled by what is measured.
RELATIVE_SECONDS = {"01_cluster": 12, "02_ifd": 15, "03_sample": 5, "04_train_dynamic_pack": 80, "05_eval": 20}


class StageFailed(CodeActError):
    """A notebook did not finish its stage. ``details``: where, and how to go on; ``traceback``: the notebook's."""

    def __init__(self, message, details=(), traceback=""):
        super().__init__(message)
        self.details = list(details)
        self.traceback = traceback


# ---------------------------------------------------------------------------------------------- plan


def plan(profile="mini", overrides="", artifacts_dir="", results_dir=""):
    """Every stage execution of a profile's grid, each once, in the order they run: a list of ``StageTask``."""
    call = {"profile": profile, "overrides": overrides, "artifacts_dir": artifacts_dir, "results_dir": results_dir}
    tasks = [open_stage(stage, **call, **identity) for stage, identity in _identities(load_profile(profile, overrides))]
    return list({(task.stage, task.folder): task for task in tasks}.values())


def _identities(profile):
    """(stage, identity) of every run of the grid, in order; repeats are the caller's to drop."""
    runs = profile.runs()
    trained = [run for run in runs if not run.is_base]
    yield from (("01_cluster", {"dataset": run.dataset}) for run in trained)
    yield from (("02_ifd", {"dataset": run.dataset, "model": run.model}) for run in trained)
    for run in trained:
        chosen = {"policy": run.policy, "ratio": run.ratio, "seed": run.seed}
        yield "03_sample", {"dataset": run.dataset, "model": run.model, **chosen}
    yield from (("04_train_dynamic_pack", {"run_id": run.run_id}) for run in trained)
    yield from (("05_eval", {"run_id": run.run_id}) for run in runs)
    yield "06_tables", {}


def select(tasks, first="", only=()):
    """The tasks from stage ``first`` on, and among them those of the stages ``only``; stages by prefix (``04``)."""
    for prefix in (first, *only):
        if not any(stage.startswith(prefix) for stage in STAGES):
            raise ProfileError(f"No stage starts with {prefix!r}; the stages are {', '.join(STAGES)}.")
    start = next(stage for stage in STAGES if stage.startswith(first))
    chosen = [task for task in tasks if task.stage >= start]
    return [task for task in chosen if not only or task.stage.startswith(tuple(only))]


def matching(tasks, patterns):
    """The tasks a ``--force`` names: by stage prefix (``04``), data set, model, run_id, or ``all``."""
    for pattern in patterns:
        if not any(_matches(task, pattern) for task in tasks):
            raise ProfileError(f"--force {pattern}: no stage or run of this plan is called so; see `codeact plan`.")
    return [task for task in tasks if any(_matches(task, pattern) for pattern in patterns)]


def _matches(task, pattern):
    return pattern == "all" or task.stage.startswith(pattern) or pattern in map(str, task.identity.values())


# ---------------------------------------------------------------------------------------------- run


def run(
    profile="mini",
    overrides="",
    artifacts_dir="",
    results_dir="",
    *,
    first="",
    only=(),
    force=(),
    dry_run=False,
    verbose=False,
    say=print,
):
    """Run what is not done. Returns the number of notebooks executed (or, in a dry run, that would be).

    ``first``, ``only``: stages by prefix. ``force``: stages or runs to make anew although they are done. ``verbose``
    streams what the notebooks print. Raises ``StageFailed`` at the first notebook that does not finish its stage.
    """
    tasks = select(plan(profile, overrides, artifacts_dir, results_dir), first, only)
    forced = matching(tasks, force) if force else []
    _require_notebooks(tasks)
    if dry_run:
        return _dry_run(tasks, forced, say)
    require_package("papermill", "notebooks")
    for folder in (tasks[0].paths.artifacts, tasks[0].paths.notebooks_dir):
        make_folder(folder)  # an unwritable folder is found now, not in the first notebook
    for task in forced:
        _forget(task)
    progress = _Progress(tasks, say)
    with _kernel_environment():
        for task in tasks:
            if progress.skip(task):
                continue
            with progress.step(task):
                _execute(task, verbose)
    progress.summary()
    return progress.executed


def _require_notebooks(tasks):
    absent = [task.notebook for task in tasks if not task.notebook.exists()]
    if absent:
        raise ArtifactError(
            f"{absent[0]} does not exist. `codeact run` executes the notebooks of a clone: change into its folder, or "
            f"get one: git clone {REPOSITORY}. `codeact select`, `codeact bench` and the library work without."
        )


def _dry_run(tasks, forced, say):
    again = {id(task) for task in forced}
    waiting = [task for task in tasks if id(task) in again or not task.is_done()]
    for number, task in enumerate(tasks, 1):
        state, reason = ("forced", "to be made anew") if id(task) in again else task.state()
        say(f"[{number}/{len(tasks)}] {task.title}: {state} ({reason})")
        if task in waiting:
            say(f"    {task.papermill_line()}")
    say(f"{len(waiting)} of {len(tasks)} stages would run; nothing was changed.")
    if waiting:
        folder = short_path(tasks[0].paths.notebooks_dir, tasks[0].paths.root)
        say(f"The papermill lines work as they stand, from {tasks[0].paths.root}, once {folder} exists.")
    return len(waiting)


def _forget(task):
    """Make a stage not done, and mark what it left as foreign, so that its notebook starts from nothing."""
    marker = task.work_folder / ".stage.json"
    if marker.exists():
        write_json(marker, {"stage": task.stage, "key": "made anew by --force"})
    task.manifest_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _kernel_environment():
    """What a kernel inherits: this environment's own Python, no start-up files of the user's, fixed string hashes."""
    with tempfile.TemporaryDirectory(prefix="codeact-") as scratch:
        ours = {
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernelspec of this environment before one in the home folder
            "JUPYTER_RUNTIME_DIR": f"{scratch}/runtime",  # works with an empty or read-only home
            "IPYTHONDIR": f"{scratch}/ipython",
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a debugger warning lands in the executed notebooks
        }
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _execute(task, verbose):
    """Run one notebook; return only if its stage is then done."""
    import nbclient
    import papermill

    root = task.paths.root
    try:
        with contextlib.chdir(root):  # so that the executed copy holds paths relative to the project
            papermill.execute_notebook(
                short_path(task.notebook, root),
                short_path(task.executed_notebook, root),
                parameters=task.notebook_parameters,
                kernel_name="python3",
                cwd="notebooks",
                progress_bar=False,
                log_output=verbose,
                stdout_file=sys.stdout if verbose else None,
                stderr_file=sys.stderr if verbose else None,
                start_timeout=120,
                config=_transport(),
            )
    except (papermill.PapermillException, nbclient.exceptions.DeadKernelError, RuntimeError, TimeoutError) as error:
        raise _failure(task, error) from error
    finally:
        _tidy(task.executed_notebook, root)
    task.look_again()
    state, reason = task.state()
    if state not in ("done", "stale code"):
        raise _failure(
            task, CodeActError(f"it ended without its manifest ({state}: {reason}); its kernel may have died")
        )


def _transport():
    """Sockets in the run's own temporary folder: unlike TCP ports, no other user of a shared machine can listen in."""
    from traitlets.config import Config

    folder = os.environ["JUPYTER_RUNTIME_DIR"]
    # A socket's path may have about 100 characters, and 50 of them are the kernel's name.
    return Config({"KernelManager": {"transport": "ipc"}} if len(folder) < 45 and os.name == "posix" else {})


def _failure(task, error):
    """The error of a notebook as one sentence, where it happened, and how to go on."""
    name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    if name == "DeadKernelError":
        message = "its kernel died: killed, or out of memory"
    first_line = next((line for line in message.splitlines() if line.strip()), "no message")
    first_line = first_line.removeprefix(f"{task.title} ")
    what = first_line if hasattr(errors, name) or name == "DeadKernelError" else f"{name}: {first_line}"
    details = [f"executed notebook, with the traceback: {short_path(task.executed_notebook, task.paths.root)}"]
    if hasattr(error, "cell_index"):
        details.insert(0, f"in cell {error.cell_index + 1}{_heading(task, error.cell_index)}")
    details.append(f"to continue from here: codeact run {run_options(task.call)}")
    return StageFailed(f"{task.title} failed: {what}", details, "\n".join(getattr(error, "traceback", [])))


def _heading(task, cell_index):
    """The heading above a cell of the executed notebook, so that a reader finds it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        cells = json.loads(task.executed_notebook.read_text(encoding="utf-8"))["cells"][: cell_index + 1]
        markdown = [line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
        headings = [line.strip("# \n") for line in markdown if line.startswith("#")]
        return f", under “{headings[-1]}”" if headings else ""
    return ""


def _tidy(path, root):
    """Take this machine's folders out of an executed notebook and out of its metadata."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    for folder, instead in ((sys.prefix, ".venv"), (str(PACKAGE_DIR.parent), "."), (str(root), "."), (_home(), "~")):
        if folder and folder != "/":
            text = text.replace(f"{folder}/", f"{instead}/".removeprefix("./")).replace(f'"{folder}"', f'"{instead}"')
    notebook = json.loads(text)
    facts = notebook["metadata"].get("papermill", {})
    facts.pop("environment_variables", None)
    with atomic_write(path) as file:
        json.dump(notebook, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")


def _home():
    return str(Path.home())


# ---------------------------------------------------------------------------------------------- progress


class _Progress:
    """Says which stage runs, how long it has been, and how long the rest may take."""

    def __init__(self, tasks, say):
        self.tasks, self.say = tasks, say
        self.number = self.executed = self.skipped = 0
        self.stale = []
        self.started = time.monotonic()
        self.expected = {id(task): _expected_seconds(task) for task in tasks}
        self.waiting = {id(task) for task in tasks if not task.is_done()}
        self.measured = self.guessed = 0.0

    def skip(self, task):
        """Whether ``task`` is done already; counts it."""
        self.number += 1
        task.look_again()
        state, _ = task.state()
        if state not in ("done", "stale code"):
            return False
        self.skipped += 1
        self.stale += [task] if state == "stale code" else []
        self.say(f"[{self.number}/{len(self.tasks)}] {task.title}: {state}, skipped")
        return True

    @contextlib.contextmanager
    def step(self, task):
        head = f"[{self.number}/{len(self.tasks)}] {task.title}"
        self.say(f"{head} … {clock(time.monotonic() - self.started)} elapsed{self._left()}")
        self.say(f"    {task.papermill_line()}")
        before = time.monotonic()
        with _ticking(head, before, self.expected[id(task)] * self._scale() if self.measured else None):
            yield
        seconds = time.monotonic() - before
        self.measured += seconds
        self.guessed += self.expected[id(task)]
        self.executed += 1
        self.say(f"    done in {clock(seconds)}")

    def _scale(self):
        return self.measured / self.guessed if self.guessed else 1.0

    def _left(self):
        """Expected time of the stages from here on that were not done at the start, scaled by what was measured."""
        if not self.measured:
            return ""
        rest = [self.expected[id(task)] for task in self.tasks[self.number - 1 :] if id(task) in self.waiting]
        return f", about {clock(self._scale() * sum(rest))} left"

    def summary(self):
        total = clock(time.monotonic() - self.started)
        paths = self.tasks[-1].paths
        if not self.executed:
            self.say(f"Nothing to do: all {len(self.tasks)} stages are done.")
        else:
            self.say(f"Ran {_stages(self.executed)} in {total}; {_stages(self.skipped)} done before.")
        if self.stale:
            stages = sorted({task.stage[:2] for task in self.stale})
            again = f"codeact run {run_options(self.stale[0].call)}" + "".join(f" --force {s}" for s in stages)
            self.say(f"Made by older code and kept: {_stages(len(self.stale))}. To make them anew: {again}")
        if paths.report.exists():
            self.say(f"Tables, figures and report: {short_path(paths.report, paths.root)}")


def _stages(number):
    return f"{number} stage" if number == 1 else f"{number} stages"


def _expected_seconds(task):
    """What the stage took last time, whatever its parameters were; else a guess in units of the mini profile."""
    with contextlib.suppress(ArtifactError):
        return StageManifest.read(task.manifest_path).seconds + 3  # a kernel needs about 3 s to start and stop
    ratio = task.run.ratio if task.stage == "04_train_dynamic_pack" else 1.0
    return RELATIVE_SECONDS.get(task.stage, 10) * ratio + 3


@contextlib.contextmanager
def _ticking(head, started, expected):
    """On a terminal, a line that counts the seconds while a notebook runs."""
    if not sys.stdout.isatty():
        yield
        return
    finished = threading.Event()

    def tick():
        while not finished.wait(1.0):
            of = f" of about {clock(expected)}" if expected else ""
            print(f"\r\033[K    {clock(time.monotonic() - started)}{of}", end="", flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        print("\r\033[K", end="", flush=True)


# ---------------------------------------------------------------------------------------------- showing the plan


def plan_lines(tasks):
    """The graph of stages as lines of text: per stage what it reads, per execution its state and why."""
    states = {id(task): task.state() for task in tasks}
    done = sum(state in ("done", "stale code") for state, _ in states.values())
    yield f"profile {tasks[0].profile.name}: {len(tasks)} stages, {done} done, {len(tasks) - done} to run"
    for stage in STAGES:
        group = [task for task in tasks if task.stage == stage]
        if group:
            yield f"{stage}  <- {_reads(group)}"
        for task in group:
            state, reason = states[id(task)]
            name = task.title.removeprefix(stage).strip() or task.profile.name
            yield f"    {_SIGN.get(state, '-')} {state:10}  {name}  ({reason})"


_SIGN = {"done": "+", "stale code": "~", "changed": "!", "damaged": "!"}


def _reads(group):
    """The stages and other sources a group of tasks reads from."""
    names = sorted({maker_of(name) or name.split()[0].replace("_", " ") for task in group for name in task.inputs})
    return ", ".join(names) or "the instruction set"
