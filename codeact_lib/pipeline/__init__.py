"""The runner: six stages, what is done of them, and papermill for the rest."""

from codeact_lib.pipeline.history import run_history
from codeact_lib.pipeline.run import StageFailed, plan, run
from codeact_lib.pipeline.stages import STAGES, StageTask, open_stage, run_options

__all__ = [
    "STAGES",
    "StageFailed",
    "StageTask",
    "open_stage",
    "plan",
    "run",
    "run_history",
    "run_options",
]
