"""Whether a stage is done, and if not, why; and the code that a stage is made by."""

import json
from pathlib import Path
from typing import NamedTuple

from codeact_lib.artifacts import PACKAGE_DIR, sha256_file, sha256_json
from codeact_lib.pipeline.stages import TABLE


class State(NamedTuple):
    """`name`: done, stale code, missing, changed or damaged. The first two count as done."""

    name: str
    reason: str

    @property
    def is_done(self) -> bool:
        return self.name in ("done", "stale code")


def code_sha256(notebook: Path) -> str:
    """Hash of the code of a stage: the code cells of its notebook and its parts of the package (`stages.yaml`).

    Outputs and prose do not count. A changed hash is reported as stale code and makes nothing anew by itself.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.exists() else []
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    digests = {}
    for part in TABLE[notebook.stem]["code"]:
        path = PACKAGE_DIR / part
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in (".py", ".yaml", ".j2", ".css"):
                digests[file.relative_to(PACKAGE_DIR).as_posix()] = sha256_file(file)
    return sha256_json({"notebook": sources, "modules": digests})


def clock(seconds: float) -> str:
    """`45 s`, `2:05 min`, `3:07 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
