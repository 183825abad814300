"""The runner: six stages as declarations, what is done, and papermill for the rest."""

from codeact_lib.pipeline.run import plan, run
from codeact_lib.pipeline.stages import open_stage

__all__ = ["open_stage", "plan", "run"]
