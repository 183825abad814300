"""Short functions of the Python standard library, stored beside this file with their licence.

Stored, not read from the running Python, so that every Python makes the same rows. `tools/mine_stdlib.py` wrote them.
"""

import json
from functools import lru_cache
from pathlib import Path

TEXTS = Path(__file__).parent / "stdlib_texts" / "functions.jsonl"


@lru_cache
def short_functions(use: str) -> tuple[tuple[str, str, str], ...]:
    """(name, first docstring paragraph or "", source without docstring) of the functions for one use, in file order.

    `use` is "instructions" (documented functions only) or "pretraining". The two come from different modules.
    """
    rows = map(json.loads, TEXTS.read_text(encoding="utf-8").splitlines())
    return tuple((row["name"], row["doc"], row["code"]) for row in rows if row["use"] == use)
