"""The runner: six stages, what is done of them, and papermill for the rest."""

from codeact_lib.pipeline.history import run_history
from codeact_lib.pipeline.notebook import StageFailed
from codeact_lib.pipeline.plan import estimate_lines, plan, plan_lines
from codeact_lib.pipeline.run import run
from codeact_lib.pipeline.stages import STAGES
from codeact_lib.pipeline.task import StageTask, open_stage, run_options
