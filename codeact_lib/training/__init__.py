"""Stage 04: fine-tune on the chosen rows, survive a kill, measure what it cost."""

from importlib import import_module
from typing import Any

# Imported on first use: `codeact plan` asks `memory` and `launch` for numbers and must not wait the seconds that torch
# takes to import.
_HOMES = {
    "PROFILE_KEYS": "settings",
    "SeededOrder": "steps",
    "TrainReport": "report",
    "fine_tune": "run",
    "fine_tune_in_child": "launch",
    "make_arguments": "settings",
    "read_rows": "steps",
    "tokenize_rows": "steps",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
