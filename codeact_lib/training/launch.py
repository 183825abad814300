"""A training in a process of its own, or in several: started from a notebook, watched, and ended with it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codeact_lib.artifacts import PACKAGE_DIR, make_folder, read_json, write_json
from codeact_lib.errors import ModelError, ProfileError
from codeact_lib.processes import child_environment, pass_lines_on, start
from codeact_lib.prompts import PromptTemplate
from codeact_lib.training.report import TrainReport

# In half precision on a CPU, oneDNN compiles a kernel for every new shape and keeps a thousand: with batches of all
# widths that is 0.5-1 GB of "peak memory" that is no memory of the training. Keeping 32 costs no measurable time.
FEW_KERNELS = {"LRU_CACHE_CAPACITY": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
ACCELERATE_CONFIGS = PACKAGE_DIR / "accelerate_configs"


def fine_tune_in_child(
    arguments: Mapping[str, Any],
    *,
    launcher: str = "python",
    accelerate_config: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> TrainReport:
    """Run `fine_tune(**arguments)` in a fresh process and hand each progress line it prints to `say`.

    The child ends when this process does; what libraries write to its standard error goes to `training.log` in the
    output folder. `launcher` "accelerate" starts it through `accelerate launch`, on all GPUs that `accelerate_config`
    names: "ddp" or "fsdp2", which ship with the package, the path of your own file, or None for the machine's default.

    Raises ModelError with the last line of the log, ProfileError for an unknown `accelerate_config`.
    """
    # In a process of its own, because a notebook's kernel holds memory that must not be measured as the training's.
    output_dir = make_folder(arguments["output_dir"])
    config = output_dir / "train.json"
    log = output_dir / "training.log"
    plain = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, PromptTemplate):
            plain[name] = value.name
        elif isinstance(value, os.PathLike):
            plain[name] = str(value)
    write_json(config, plain)
    command = ["-m", "codeact_lib.training", "--config", str(config), "--with-parent", str(os.getpid())]
    if launcher == "accelerate":
        chosen = ["--config_file", str(accelerate_config_path(accelerate_config))] if accelerate_config else []
        command = ["-m", "accelerate.commands.launch", *chosen, *command]
    with log.open("w", encoding="utf-8") as errors:
        status = pass_lines_on(start(command, env={**FEW_KERNELS, **child_environment()}, stderr=errors), say)
    if status:
        # The training's own last word, or whatever stands last when it was killed from outside.
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["killed, out of memory?"]
        own = [line for line in lines if line.startswith("error: ")]
        reason = (own or lines)[-1].removeprefix("error: ")
        raise ModelError(f"training ended with exit code {status}: {reason}")
    return TrainReport(**read_json(output_dir / "train_metrics.json"))


def accelerate_config_path(name_or_path: str | Path) -> Path:
    """File of an accelerate configuration that ships with the package, or the path itself."""
    shipped = ACCELERATE_CONFIGS / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in ACCELERATE_CONFIGS.glob("*.yaml")))
        raise ProfileError(f"no accelerate_config {str(name_or_path)!r}: choose one of {known}, or give a file")
    return path
