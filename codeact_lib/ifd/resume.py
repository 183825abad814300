"""What a scoring that was killed resumes from: append-only files of summed NLLs, one line a token sequence.

    {"example_id": "evol-17", "pass": "direct", "tokens": "9f2c61b0a7d3e845", "nll": 41.87}

`tokens` is a hash of the very tokens scored, and the model's fingerprint stands in the file name: a changed text,
template or model never takes an old sum for its own. A line is complete when its newline is there. What a kill left
behind it is cut off before anything is appended; a damaged line elsewhere counts as not scored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from codeact_lib.errors import ArtifactError
from codeact_lib.modeling.loss import causal_lm

Key = tuple[str, str, str]  # example_id, pass, hash of the tokens


class SumShards:
    """The files of one model in `folder`: every process appends to its own, all are read. None keeps nothing.

    Only one job may write into a folder at a time: whoever starts one locks the folder (`artifacts.locked`).
    """

    def __init__(self, folder: str | Path | None, fingerprint: str) -> None:
        self.folder = None if folder is None else Path(folder)
        self.fingerprint = fingerprint

    def read(self) -> dict[Key, float]:
        """The sums that are known; NaN where the model gave none."""
        known: dict[Key, float] = {}
        if self.folder is None:
            return known
        for path in sorted(self.folder.glob(f"scores-{self.fingerprint}-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                    key = record["example_id"], record["pass"], record["tokens"]
                    known[key] = math.nan if record["nll"] is None else float(record["nll"])
                except (ValueError, KeyError, TypeError):
                    continue
        return known

    @contextmanager
    def append(self, process: int = 0) -> Iterator[Callable[[Mapping[Key, float], float], None]]:
        """Yield a function that writes sums and the seconds they took; the system has them when it returns."""
        if self.folder is None:
            yield lambda sums, seconds: None
            return
        path = self.folder / f"scores-{self.fingerprint}-{process}.jsonl"
        clock_path = self.folder / f"seconds-{self.fingerprint}-{process}.txt"  # one number a batch
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _cut_half_line(path)
            _cut_half_line(clock_path)
            file = open(path, "a", encoding="utf-8", newline="\n")
            clock = open(clock_path, "a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise ArtifactError(f"Cannot write {path}: {error.strerror}. Choose another folder.") from error

        def write(sums: Mapping[Key, float], seconds: float) -> None:
            lines = []
            for (example_id, name, tokens), value in sums.items():
                nll = value if math.isfinite(value) else None
                record = {"example_id": example_id, "pass": name, "tokens": tokens, "nll": nll}
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            file.write("".join(lines))  # one write a batch
            file.flush()
            if sums:
                clock.write(f"{seconds:.4f}\n")
                clock.flush()

        with file, clock:
            yield write
            os.fsync(file.fileno())


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        print(f"{path.name}: cut off {len(content) - complete} bytes of a line that a kill left half-written")
        os.truncate(path, complete)


def scoring_seconds(folder: str | Path) -> float:
    """Seconds the model worked on what lies in `folder`, over all attempts: a resumed job adds up.

    Of processes that shared the work the first one's time counts, which is what a clock on the wall would say.
    """
    seconds = 0.0
    for path in Path(folder).glob("seconds-*-0.txt"):
        for line in path.read_text("utf-8").splitlines():
            if line.replace(".", "", 1).isdigit():  # a kill may have cut a number short
                seconds += float(line)
    return seconds


# ---- which model it was ----------------------------------------------------------------------------------------------

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache", "base_model_name_or_path", "inference_mode")


def model_fingerprint(model: nn.Module) -> str:
    """Short hash of a model's configuration, adapters, precision, and the first weights of every parameter."""
    # The settings of adapters count too: the same adapter weights weigh more with a larger `lora_alpha`.
    wrapped: Any = model if hasattr(model, "peft_config") else None  # by its mark: importing PEFT takes seconds
    adapters = [_identity(wrapped.peft_config[name].to_dict()) for name in wrapped.active_adapters] if wrapped else []
    settings = [_identity(causal_lm(model).config.to_dict()), adapters]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode())
    for name, value in model.named_parameters():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta":
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_IDENTITY}


def _plain(value: object) -> list[str] | str:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)  # a set has another order in each process
