"""`python -m codeact_lib.training --config train.json`, alone or under `accelerate launch`."""

import argparse
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging

from codeact_lib import training
from codeact_lib.artifacts import read_json
from codeact_lib.errors import CodeActError, ProfileError
from codeact_lib.processes import end_with, exit_fast


def unused_libraries(arguments: Mapping[str, Any]) -> list[str]:
    """What the Trainer would import because it is installed, and this training does not use."""
    # Measured on two cores, `from transformers import Trainer` takes 3.1 s without the three and 6.1 s with them
    # (through PEFT, bitsandbytes brings PyTorch's compiler); and their memory is not the training's.
    tuning = arguments.get("tuning", "full")
    unused = ["datasets"]
    if tuning == "full":
        unused.append("peft")
    if tuning != "qlora" and not re.search("bnb|8bit", str(arguments.get("optim"))):
        unused.append("bitsandbytes")
    return unused


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m codeact_lib.training", description="Fine-tune one model.")
    parser.add_argument("--config", required=True, help="JSON file with the arguments of fine_tune")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when that process ends")
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    # The progress lines are our own, and what libraries print would go into them.
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    if options.with_parent:
        end_with(options.with_parent)
    try:
        arguments = read_json(options.config)
        missing = sorted({"train_jsonl", "model_path", "output_dir", "template"} - arguments.keys())
        if missing:
            raise ProfileError(f"{options.config} lacks {', '.join(missing)}")
        for name in unused_libraries(arguments):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # to Python that means not installed
        training.fine_tune(**arguments)  # which imports the Trainer, and so comes after the line above
    except CodeActError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    exit_fast(main())
