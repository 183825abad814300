"""00_colab and the set-up cells in an imitation of Colab; tools/colab_check.sh makes its environment and starts this.

Beside the packages three things are as on Colab: a system-wide IPython configuration makes every kernel of the machine
a `google.colab` one, secrets are asked of the browser, and only the notebook that a person opened has a browser.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat

WORK = Path(sys.argv[1])
SNAPSHOT, CONTENT = WORK / "snapshot", WORK / "content"
STAGES = ["01_cluster", "02_ifd", "03_sample", "04_train_dynamic_pack", "05_eval", "06_tables"]
FEW = 5  # lines of warnings that one run of 00_colab may show

# In place of Colab's own package, with what huggingface_hub looks for in it.
GOOGLE_COLAB = {
    "__init__.py": "",
    "_shell.py": """
from ipykernel.zmqshell import ZMQInteractiveShell

class Shell(ZMQInteractiveShell):
    pass
""",
    "_kernel.py": """
from ipykernel.ipkernel import IPythonKernel
from google.colab._shell import Shell

class Kernel(IPythonKernel):
    def _shell_class_default(self):
        return Shell
""",
    "errors.py": """
class Error(Exception):
    pass
""",
    "userdata.py": """
import os
from google.colab import errors

class NotebookAccessError(Exception):
    pass

class SecretNotFoundError(errors.Error):
    pass

def get(key):
    if os.getppid() != int(os.environ["COLAB_CHECK"]):
        raise RuntimeError(f"a kernel without a browser asks for {key}: on Colab it would wait for ever")
    raise SecretNotFoundError(key)
""",
}


@contextlib.contextmanager
def colab_kernels():
    """Inside, the package is on PYTHONPATH, and what Colab has in /etc/ipython where only this environment reads it."""
    package = Path(os.environ["PYTHONPATH"], "google", "colab")
    package.mkdir(parents=True)
    for name, text in GOOGLE_COLAB.items():
        (package / name).write_text(text)
    configuration = Path(sys.prefix, "etc", "ipython", "ipython_config.py")
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text("get_config().IPKernelApp.kernel_class = 'google.colab._kernel.Kernel'\n")
    os.environ["COLAB_CHECK"] = str(os.getpid())  # kernels that this process starts are those with a browser
    try:
        yield
    finally:
        configuration.unlink()


def pip(*words):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, capture_output=True, text=True).stdout


def versions():
    return dict(line.split("==") for line in pip("list", "--format=freeze").split())


def read(stage):
    return nbformat.read(SNAPSHOT / "notebooks" / f"{stage}.ipynb", as_version=4)


def execute(notebook, name, environment):
    """Run a notebook in Colab's folder; a cell that fails is an error. The executed copy stays beside that folder."""
    client = nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(CONTENT)}})
    try:
        client.execute(env=environment)
    finally:
        nbformat.write(notebook, WORK / f"{name}.ipynb")


def launch(profile, environment, **parameters):
    """Run 00_colab from its first cell to its last; fail without tables or figures, or when warnings drown them."""
    notebook = read("00_colab")
    place = next(n for n, cell in enumerate(notebook.cells) if cell.id == "parameters") + 1
    chosen = [f"{name} = {value!r}" for name, value in {"profile": profile, **parameters}.items()]
    notebook.cells.insert(place, nbformat.v4.new_code_cell("\n".join(chosen)))
    execute(notebook, f"00_colab-{profile}", environment)

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "measured" in outputs["rq1"][0].data["text/markdown"]
    assert [list(output.data)[0] for output in outputs["figures"]] == ["image/png", "image/png"]
    print("".join(output.text for cell in ("colab", "checks") for output in outputs[cell]).rstrip())
    warnings = [line for cell in outputs.values() for output in cell for line in warnings_of(output)]
    print(f"{len(warnings)} lines of warnings", *warnings[:20], sep="\n    ")
    assert len(warnings) <= FEW, f"more than {FEW}"


def warnings_of(output):
    """Lines that a reader would take for trouble: all of stderr, and what names it in the printed text."""
    lines = output.text.splitlines() if output.output_type == "stream" else []
    said = re.compile(r"Warning:|^WARNING|^ERROR|Traceback")
    return [line for line in lines if output.name == "stderr" or said.search(line)]


def launch_on_stand_ins(environment):
    """00_colab with colab-qlora: the profile's own code path, with the small things of the tests from their hub."""
    import transformers
    from hub import StandInHub
    from test_profiles import SMALL
    from tiny_models import save_tiny_embedder

    from codeact_lib.mini import MINI_BASE_DIR, build_corpus

    transformers.utils.logging.disable_progress_bar()
    rows = build_corpus("mini-evol").head(60).rename(columns={"response": "output"})
    folder = WORK / "set"
    folder.mkdir()
    rows[["instruction", "output"]].to_parquet(folder / "train-00000-of-00001.parquet")
    model = {"name": "tiny", "path": "tiny/llama", "revision": "main", "template": "deepseek-coder"}
    data = {"name": "evol", "path": "tiny/evol", "revision": "main", "response_column": "output", "label": "EVOL"}
    small = {**SMALL, "name": "small", "models": [{**model, "label": "Tiny", "size": "2M"}], "datasets": [data]}
    with StandInHub() as hub:
        hub.add("model", "tiny/llama", MINI_BASE_DIR)
        hub.add("dataset", "tiny/evol", folder)
        hub.add("model", "tiny/embedder", save_tiny_embedder(WORK / "embedder"))
        environment = {**environment, **hub.environment(WORK / "hub")}
        launch("colab-qlora", environment, overrides=json.dumps({**small, "fp16": False}))  # a CPU has no fp16 training


def set_up_again(stage, environment):
    """The set-up cell of a notebook that is opened second: nothing to do, nothing to say."""
    notebook = read(stage)
    notebook.cells = [cell for cell in notebook.cells if cell.id == "colab"]
    execute(notebook, f"{stage}-set-up", environment)
    assert notebook.cells[0].outputs == [], notebook.cells[0].outputs


def say_what_changed(before, after):
    """Print what the set-up moved and added; fail when it moved more than it names, or when packages no longer fit."""
    from test_colab import normalised, upgraded

    changed = [name for name in before if after.get(name) != before[name]]
    print("changed:", ", ".join(f"{name} {before[name]} -> {after.get(name)}" for name in changed))
    print("added:", ", ".join(f"{name} {after[name]}" for name in after if name not in before))
    assert {normalised(name) for name in changed} <= set(upgraded())
    conflicts = pip("check").strip()
    assert conflicts == "No broken requirements found.", conflicts


@contextlib.contextmanager
def part(title):
    print(f"\n{title} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"{(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def main():
    environment = dict(os.environ)  # what the imports of tests/ change in it is not for the kernels
    before = versions()
    with part("00_colab, profile mini"):
        launch("mini", environment, overrides=os.environ.get("COLAB_OVERRIDES", ""))
    sys.path += [str(SNAPSHOT), str(SNAPSHOT / "tests")]
    say_what_changed(before, versions())
    with part("00_colab, profile colab-qlora with small stand-ins"):
        launch_on_stand_ins(environment)
    with part("the set-up cells of 01 to 06, which have nothing to do or say"):
        for stage in STAGES:
            set_up_again(stage, environment)


with colab_kernels():
    main()
