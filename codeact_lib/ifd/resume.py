"""What a scoring that was killed resumes from: append-only files of summed NLLs, one line a token sequence.

    {"example_id": "evol-17", "pass": "direct", "tokens": "9f2c61b0a7d3e845", "nll": 41.87}

`tokens` is a hash of the very tokens scored, and the model's fingerprint stands in the file name: a changed text,
template or model never takes an old sum for its own.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from codeact_lib.artifacts import append_jsonl, make_folder, resume_jsonl
from codeact_lib.modeling.loss import causal_lm

Key = tuple[str, str, str]  # example_id, pass, hash of the tokens

# Of a configuration: where it came from and how it is used say nothing about the sums.
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache", "base_model_name_or_path", "inference_mode")


# A file a process: on a network disk the appends of two may interleave. Only one job may write into a folder at a time:
# whoever starts one locks the folder (`artifacts.locked`).
class SumShards:
    """The files of one model in `folder`: every process appends to its own, all are read."""

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder = make_folder(folder)
        self.fingerprint = fingerprint

    def read(self) -> dict[Key, float]:
        """The sums that are known; NaN where the model gave none."""
        known: dict[Key, float] = {}
        # The clocks are read along: before anything is appended, half a line is cut off them too.
        for path in sorted(self.folder.glob(f"*-{self.fingerprint}-*.jsonl")):
            for record in resume_jsonl(path, ("example_id", "pass", "tokens", "nll")):
                key = record["example_id"], record["pass"], record["tokens"]
                known[key] = math.nan if record["nll"] is None else float(record["nll"])
        return known

    def append(self, sums: Mapping[Key, float | None], seconds: float, process: int) -> None:
        """Keep the sums of a batch and the seconds it took."""
        records = []
        for (example_id, name, tokens), value in sums.items():
            if value is None:  # memory did not suffice for it: the next call tries it again
                return
            nll = value if math.isfinite(value) else None
            records.append({"example_id": example_id, "pass": name, "tokens": tokens, "nll": nll})
        append_jsonl(self.folder / f"scores-{self.fingerprint}-{process}.jsonl", records)
        append_jsonl(self.folder / f"seconds-{self.fingerprint}-{process}.jsonl", [{"seconds": round(seconds, 4)}])


def scoring_seconds(folder: str | Path) -> float:
    """Seconds the model worked on what lies in `folder`, over all attempts: a resumed job adds up."""
    # Of processes that shared the work the first one's time counts: what a clock on the wall would say.
    clocks = Path(folder).glob("seconds-*-0.jsonl")
    return sum(record["seconds"] for path in clocks for record in resume_jsonl(path, ("seconds",)))


def model_fingerprint(model: nn.Module) -> str:
    """Short hash of a model's configuration, adapters, precision, and the first weights of every parameter."""
    # 256 values of each: all of a 7B model are 13 GB to read at every start, and a training changes no parameter in one
    # place only.
    adapters = []
    if hasattr(model, "peft_config"):  # by its mark: importing PEFT takes seconds
        # Their settings count too: the same adapter weights weigh more with a larger `lora_alpha`.
        adapters = [_identity(model.peft_config[name].to_dict()) for name in model.active_adapters]
    settings = [_identity(causal_lm(model).config.to_dict()), adapters]

    def plain(value: object) -> list[str] | str:
        # A set, such as LoRA's target_modules, has another order in each process.
        if isinstance(value, set):
            return sorted(map(str, value))
        return str(value)

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=plain).encode())
    for name, value in model.named_parameters():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta":
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_IDENTITY}
