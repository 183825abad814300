"""`python -m codeact_lib.training --config train.json`, alone or under `accelerate launch`."""

from codeact_lib.processes import exit_fast
from codeact_lib.training.fine_tune import main

if __name__ == "__main__":
    exit_fast(main())
