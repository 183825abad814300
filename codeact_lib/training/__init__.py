"""Stage 04: fine-tune on the chosen rows, survive a kill, measure what it cost."""

from codeact_lib.extensions import on_first_use

# `__main__` keeps the Trainer from importing what a training does not use, so this package must not import it first.
HOMES = {
    "launch": ("fine_tune_in_child",),
    "report": ("TrainReport",),
    "run": ("fine_tune",),
    "settings": ("PROFILE_KEYS", "make_arguments"),
    "steps": ("SeededOrder", "read_rows", "tokenize_rows"),
}
__all__, __getattr__ = on_first_use(__name__, HOMES)
