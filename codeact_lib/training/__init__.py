"""Stage 04: fine-tune on the chosen rows, survive a kill, measure what it cost."""

from codeact_lib.training.checkpoints import latest_checkpoint
from codeact_lib.training.fine_tune import PROFILE_KEYS, fine_tune, make_arguments
from codeact_lib.training.launch import fine_tune_in_child
from codeact_lib.training.report import TrainReport
from codeact_lib.training.steps import SeededOrder, read_rows, tokenize_rows

__all__ = [
    "PROFILE_KEYS",
    "SeededOrder",
    "TrainReport",
    "fine_tune",
    "fine_tune_in_child",
    "latest_checkpoint",
    "make_arguments",
    "read_rows",
    "tokenize_rows",
]
