"""A training in a process of its own, or in several: started from a notebook, watched, and ended with it."""

import os
from pathlib import Path

from codeact_lib.artifacts import PACKAGE_DIR, make_folder, read_json, write_json
from codeact_lib.errors import ModelError, ProfileError
from codeact_lib.processes import child_environment, pass_lines_on, start
from codeact_lib.training.report import TrainReport

# In half precision on a CPU, oneDNN compiles a kernel for every new shape and keeps a thousand: with batches of all
# widths that is 0.5-1 GB of "peak memory" that is no memory of the training. Keeping 32 costs no measurable time.
FEW_KERNELS = {"LRU_CACHE_CAPACITY": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
ACCELERATE_CONFIGS = PACKAGE_DIR / "accelerate_configs"


def fine_tune_in_child(arguments: dict, *, launcher: str = "python", accelerate_config=None, say=print) -> TrainReport:
    """Run `fine_tune(**arguments)` in a fresh process and hand each progress line it prints to `say`.

    A notebook's kernel holds memory of its own and must not be what is measured. The child ends when this process
    does; what libraries write to its standard error goes to `training.log` in the output folder. `launcher`
    "accelerate" starts it through `accelerate launch`, on all GPUs that `accelerate_config` names: "ddp" or "fsdp2",
    which ship with the package, the path of your own file, or None for the machine's default.

    Raises ModelError with the last line of the log, ProfileError for an unknown `accelerate_config`.
    """
    output_dir = make_folder(arguments["output_dir"])
    config, log = output_dir / "train.json", output_dir / "training.log"
    write_json(config, {name: _plain(value) for name, value in arguments.items()})
    command = [*_launcher(launcher, accelerate_config), "codeact_lib.training"]
    command += ["--config", str(config), "--with-parent", str(os.getpid())]
    with log.open("w", encoding="utf-8") as errors:
        status = pass_lines_on(start(command, env={**FEW_KERNELS, **child_environment()}, stderr=errors), say)
    if status:
        raise ModelError(f"training ended with exit code {status}: {_reason(log)}")
    return TrainReport(**read_json(output_dir / "train_metrics.json"))


def _launcher(launcher, accelerate_config) -> list[str]:
    if launcher != "accelerate":
        return ["-m"]
    config = ["--config_file", str(accelerate_config_path(accelerate_config))] if accelerate_config else []
    return ["-m", "accelerate.commands.launch", *config, "-m"]


def accelerate_config_path(name_or_path) -> Path:
    """File of an accelerate configuration that ships with the package, or the path itself."""
    shipped = ACCELERATE_CONFIGS / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in ACCELERATE_CONFIGS.glob("*.yaml")))
        raise ProfileError(f"no accelerate_config {str(name_or_path)!r}: choose one of {known}, or give a file")
    return path


def _reason(log) -> str:
    """The training's own last word, or whatever stands last when it was killed from outside."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["killed, out of memory?"]
    own = [line for line in lines if line.startswith("error: ")]
    return (own or lines)[-1].removeprefix("error: ")


def _plain(value):
    """Paths and templates as the text that names them."""
    return value.name if hasattr(value, "sha256") else str(value) if isinstance(value, os.PathLike) else value
