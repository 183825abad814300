"""One notebook through papermill: the environment of its kernel, its executed copy, and its error in words."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from codeact_lib import errors
from codeact_lib.artifacts import PACKAGE_DIR, atomic_write, make_folder
from codeact_lib.errors import CodeActError
from codeact_lib.pipeline.task import StageTask, run_options

if TYPE_CHECKING:
    from traitlets.config import Config


class StageFailed(CodeActError):
    """A notebook did not finish its stage. `details`: where, and how to go on; `traceback`: the notebook's."""

    def __init__(self, message: str, details: Sequence[str] = (), traceback: str = "") -> None:
        super().__init__(message)
        self.details = list(details)
        self.traceback = traceback


@contextlib.contextmanager
def kernel_environment() -> Iterator[Config]:
    """What a kernel inherits: this environment's Python, no start-up files, fixed hashes. Yields how to talk to it."""
    # the one place where the environment is changed; it is put back in the end
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
        with mock.patch.dict(os.environ, ours):
            yield transport


def execute(task: StageTask, transport: Config, verbose: bool) -> None:
    """Run one notebook; StageFailed unless its stage is then done."""
    import nbclient
    import papermill

    try:
        with contextlib.chdir(task.paths.root):  # so that the executed copy holds paths relative to the project
            papermill.execute_notebook(
                task.paths.shown(task.notebook),
                task.paths.shown(task.executed_notebook),
                parameters=task.call | task.identity,
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
    # papermill's own verdict is not trusted: sys.exit(0) in a cell is no error to it, and after a killed kernel every
    # cell is marked completed. A stage has succeeded when its manifest is there and matches.
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
        details.append(f"in cell {told['cell_index'] + 1}{_heading(task.executed_notebook, told['cell_index'])}")
    details.append(f"executed notebook, with the traceback: {task.paths.shown(task.executed_notebook)}")
    details.append(f"to continue from here: codeact run {run_options(**task.call)}")
    return StageFailed(f"{task.title} failed: {what}", details, "\n".join(told.get("traceback", [])))


def _heading(path: Path, cell_index: int) -> str:
    """The heading above a cell of the executed notebook, so that a reader finds it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in reversed(cells[: cell_index + 1]):
            for line in reversed(cell["source"]):
                if cell["cell_type"] == "markdown" and line.startswith("#"):
                    return f", under “{line.strip('# ').strip()}”"
    return ""


def _tidy(path: Path, root: Path) -> None:
    # executed notebooks are kept with the results and published: no folder of this machine may stand in them
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
