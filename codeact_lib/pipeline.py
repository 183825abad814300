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
import fnmatch
import importlib.metadata
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from codeact_lib import claims, errors
from codeact_lib.artifacts import PACKAGE_DIR, atomic_write, make_folder, write_json
from codeact_lib.config import load_profile
from codeact_lib.errors import ArtifactError, CodeActError, ProfileError, require_package
from codeact_lib.estimates import estimate_lines
from codeact_lib.jobs import run_jobs
from codeact_lib.progress import Progress
from codeact_lib.stages import STAGES, StageTask, maker_of, open_stage, run_options, short_path

__all__ = ["STAGES", "StageFailed", "StageTask", "open_stage", "plan", "run"]


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


def select(tasks, first="", only=(), runs=()):
    """The tasks from stage ``first`` on, of the stages ``only`` (by prefix: ``04``), and what the ``runs`` need."""
    for prefix in (first, *only):
        if not any(stage.startswith(prefix) for stage in STAGES):
            raise ProfileError(f"No stage starts with {prefix!r}; the stages are {', '.join(STAGES)}.")
    start = next(stage for stage in STAGES if stage.startswith(first))
    wanted = {id(task) for task in (of_runs(tasks, runs) if runs else tasks)}
    chosen = [task for task in tasks if task.stage >= start and id(task) in wanted]
    chosen = [task for task in chosen if not only or task.stage.startswith(tuple(only))]
    if not chosen:
        raise ProfileError(f"No stage from {first or STAGES[0][:2]} on is one of {', '.join(only)}: nothing to run.")
    return chosen


def of_runs(tasks, patterns):
    """The training and the evaluation of each run whose run_id matches a pattern, what they read from, and 06."""
    known = [task.run.run_id for task in tasks if task.run]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ProfileError(f"--runs {pattern}: no run_id of this plan matches; `codeact runs` lists them.")
    needed = {id(t) for t in tasks if t.run and any(fnmatch.fnmatchcase(t.run.run_id, p) for p in patterns)}
    sources = makers(tasks)
    for task in reversed(tasks):
        if id(task) in needed:
            needed |= sources[id(task)]
    return [task for task in tasks if id(task) in needed or task.stage == "06_tables"]


def makers(tasks):
    """``{id(task): ids of the tasks that make what it reads}``."""
    made = {path: id(task) for task in tasks if task.stage != "06_tables" for path in task.makes}
    return {
        id(task): {made[place] for path in task.inputs.values() for place in (path, *path.parents) if place in made}
        for task in tasks
    }


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
    runs=(),
    force=(),
    jobs=1,
    dry_run=False,
    verbose=False,
    say=print,
):
    """Run what is not done. Returns the number of notebooks executed (or, in a dry run, that would be).

    ``first``, ``only``: stages by prefix. ``runs``: patterns of run_ids (``fnmatch``); only these are trained and
    evaluated, what they need is made, and the tables follow when all runs are done, or when ``only`` names them.
    ``force``: stages or runs to make anew although they are done. ``jobs``: how many processes work side by side on
    this machine. ``verbose`` streams what the notebooks print.

    Several processes may run in the same folders at the same time, on one machine or on many: each stage is executed by
    one of them, and what a killed one leaves is taken over (``codeact_lib.claims``). Raises ``StageFailed`` at the
    first notebook that does not finish its stage.
    """
    everything = plan(profile, overrides, artifacts_dir, results_dir)
    tasks = select(everything, first, only, runs)
    tables_later = bool(runs) and not only and tasks[-1].stage == "06_tables"
    forced = matching(tasks, force) if force else []
    _require_notebooks(tasks)
    if dry_run:
        return _dry_run(tasks, forced, everything if tables_later else (), say)
    require_package("papermill", "notebooks")
    for folder in (tasks[0].paths.artifacts, tasks[0].paths.notebooks_dir):
        make_folder(folder)  # an unwritable folder is found now, not in the first notebook
    for task in forced:
        _forget(task)
    if jobs > 1:
        return _in_jobs(jobs, tasks, _job_options(tasks[0].call, first, only, runs, verbose), say)
    progress = Progress(tasks, say)
    with _kernel_environment():
        _work(tasks[:-1] if tables_later else tasks, progress, verbose)
        if tables_later and not (unfinished := _not_done(everything, "05_eval")):
            _work(tasks[-1:], progress, verbose)
        elif tables_later:
            say(f"06_tables follows when the other runs are done; {len(unfinished)} are not.")
    progress.summary()
    return len(progress.finished)


def _job_options(call, first, only, runs, verbose):
    options = [*shlex.split(run_options(call)), *(["--from", first] if first else []), *(["-v"] if verbose else [])]
    return options + [word for stage in only for word in ("--only", stage)] + [w for r in runs for w in ("--runs", r)]


def _in_jobs(number, tasks, options, say):
    before = _not_done(tasks)
    run_jobs(number, options, cwd=tasks[0].paths.root, say=say)
    return len(before) - len(_not_done(before))


def _not_done(tasks, stage=""):
    for task in tasks:
        task.look_again()
    return [task for task in tasks if task.stage.startswith(stage) and not task.is_done()]


POLL_SECONDS = 1.0  # between two looks at what other processes hold


def _work(tasks, progress, verbose):
    """Go through what is left, as often as it takes: run what is ready and free, until all is done by someone."""
    claims_of_all, sources, left = tasks[0].claims, makers(tasks), list(tasks)
    while left:
        waiting = {}
        for task in left:
            blocked = sources[id(task)] & waiting.keys()
            if blocked or not (progress.skip(task) or _run_if_free(task, claims_of_all, progress, verbose)):
                waiting[id(task)] = task
        if len(waiting) == len(left):
            progress.wait_for(left, claims_of_all)
            time.sleep(POLL_SECONDS)
        left = list(waiting.values())


def _run_if_free(task, claims_of_all, progress, verbose):
    """Whether the task is done now; False when another process holds it."""
    with claims_of_all.take(task.name, on_lost=_interrupt) as claim:
        if claim is None:
            return False
        if progress.skip(task):  # it was done between the look and the claim
            return True
        try:
            with progress.step(task, claim.taken_from):
                _execute(task, claim, verbose)
        except KeyboardInterrupt:
            if claim.lost:
                raise StageFailed(f"{task.title} was taken over by {claims_of_all.holder(task.name)}.") from None
            raise
        return True


def _interrupt():
    """Stop what the main thread waits for: its stage belongs to another process now."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def repository() -> str:
    """Address of the project, as the installed package's own metadata has it (pyproject.toml, [project.urls])."""
    addresses = importlib.metadata.metadata("codeact-lib").get_all("Project-URL") or []
    return next(line.split(", ")[1] for line in addresses if line.startswith("Repository, "))


def _require_notebooks(tasks):
    absent = [task.notebook for task in tasks if not task.notebook.exists()]
    if absent:
        raise ArtifactError(
            f"{absent[0]} does not exist. `codeact run` executes the notebooks of a clone: change into its folder, or "
            f"get one: git clone {repository()}. `codeact select`, `codeact bench` and the library work without."
        )


def _dry_run(tasks, forced, all_runs, say):
    again = {id(task) for task in forced}
    waiting = [task for task in tasks if id(task) in again or not task.is_done()]
    for number, task in enumerate(tasks, 1):
        state, reason = ("forced", "to be made anew") if id(task) in again else task.state()
        if task.stage == "06_tables" and all_runs:
            reason = "follows when all runs are done"
        say(f"[{number}/{len(tasks)}] {task.title}: {state} ({reason})")
        if task in waiting:
            say(f"    {task.papermill_line()}")
    for line in estimate_lines(tasks):
        say(line)
    say(f"{len(waiting)} of {len(tasks)} stages would run; nothing was changed.")
    if waiting:
        folder = short_path(tasks[0].paths.notebooks_dir, tasks[0].paths.root)
        say(f"The papermill lines work as they stand, from {tasks[0].paths.root}, once {folder} exists.")
    return len(waiting)


def _forget(task):
    """Make a stage not done, and mark what it left as foreign, so that its notebook starts from nothing."""
    with task.claims.take(task.name) as claim:
        if claim is None:
            raise ArtifactError(f"--force: {task.title} is held by {task.claims.holder(task.name)}: wait, or stop it.")
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
            claims.VARIABLE: "",  # set for each notebook
        }
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _execute(task, claim, verbose):
    """Run one notebook; return only if its stage is then done."""
    import nbclient
    import papermill

    root = task.paths.root
    os.environ[claims.VARIABLE] = str(claim.path)  # the kernel inherits it
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
                # Colab's configuration of IPython makes kernels that ask the browser for the hub's token, and wait for
                # ever where there is none, as here (googlecolab/colabtools#4677): a plain kernel asks nobody.
                extra_arguments=["--IPKernelApp.kernel_class=ipykernel.ipkernel.IPythonKernel"],
                start_timeout=120,
                shutdown_kernel="immediate",  # a kernel that holds torch takes seconds to take itself apart
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
    """Sockets in the run's own temporary folder: unlike TCP ports, no other user of a shared machine can listen in.

    The place is named, for by default they lie in the working directory, where the kernels of two runs would meet.
    """
    from traitlets.config import Config

    sockets = make_folder(os.environ["JUPYTER_RUNTIME_DIR"]) / "kernel"
    fits = len(str(sockets)) < 90 and os.name == "posix"  # a socket's path may have about 100 characters
    return Config({"KernelManager": {"transport": "ipc", "ip": str(sockets)}} if fits else {})


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
