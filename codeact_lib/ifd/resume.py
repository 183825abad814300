"""What a killed scoring leaves: append-only files of summed NLLs, one line a token sequence.

    {"example_id": "evol-17", "pass": "direct", "tokens": "9f2c61b0a7d3e845", "nll": 41.87}

``tokens`` is a hash of the very tokens scored, and the model's fingerprint stands in the file name: a changed text,
template or model never takes an old sum for its own. A line is complete when its newline is there. What a kill left
behind it is cut off before anything is appended; a damaged line elsewhere counts as not scored.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from codeact_lib.errors import ArtifactError
from codeact_lib.modeling.loss import _causal_lm


def sequence_key(example_id, name, ids, start):
    """Identity of one sum: the row, the pass, and a hash of the tokens and of where scoring starts."""
    digest = hashlib.blake2b(np.asarray([start, *ids], dtype="<i8").tobytes(), digest_size=8)
    return f"{example_id}", name, digest.hexdigest()


class SumShards:
    """The files of one model in ``folder``: every process appends to its own, all are read.

    Only one job may write into a folder at a time: whoever starts one locks the folder (``artifacts.locked``).
    """

    def __init__(self, folder, fingerprint):
        self.folder, self.fingerprint = Path(folder), fingerprint

    def read(self):
        """``{key: sum}`` as ``sequence_key`` gives them; NaN where the model gave none."""
        known = {}
        for path in sorted(self.folder.glob(f"scores-{self.fingerprint}-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                    nll = record["nll"]
                    known[record["example_id"], record["pass"], record["tokens"]] = (
                        float("nan") if nll is None else float(nll)
                    )
                except (ValueError, KeyError, TypeError):
                    continue
        return known

    @contextmanager
    def append(self, process=0):
        """Yield a function that writes ``[(key, sum)]`` and the seconds they took; the system has them on return."""
        path = self.folder / f"scores-{self.fingerprint}-{process}.jsonl"
        clock_path = self.folder / f"seconds-{self.fingerprint}-{process}.txt"  # one number a batch
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for each in (path, clock_path):
                _cut_half_line(each)
            file, clock = (open(p, "a", encoding="utf-8", newline="\n") for p in (path, clock_path))
        except OSError as error:
            raise ArtifactError(f"Cannot write {path}: {error.strerror}. Choose another folder.") from error
        with file, clock:

            def write(results, seconds):
                file.write("".join(_line(key, value) for key, value in results))  # one write a batch
                file.flush()
                clock.write(f"{seconds:.4f}\n" if results else "")
                clock.flush()

            yield write
            os.fsync(file.fileno())


def _line(key, value):
    example_id, name, tokens = key
    nll = value if np.isfinite(value) else None
    return json.dumps({"example_id": example_id, "pass": name, "tokens": tokens, "nll": nll}, ensure_ascii=False) + "\n"


def _cut_half_line(path):
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        print(f"{path.name}: cut off {len(content) - complete} bytes of a line that a kill left half-written")
        os.truncate(path, complete)


def scoring_seconds(folder):
    """Seconds the model worked on what lies in ``folder``, over all attempts: a resumed job adds up.

    Of processes that shared the work the first one's time counts, which is what a clock on the wall would say.
    """
    lines = [line for path in Path(folder).glob("seconds-*-0.txt") for line in path.read_text("utf-8").splitlines()]
    return float(sum(float(line) for line in lines if line.replace(".", "", 1).isdigit()))


# ---------------------------------------------------------------------------------------------- which model it was

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache", "base_model_name_or_path", "inference_mode")


def model_fingerprint(model):
    """Short hash of a model's configuration, adapters, precision, and the first weights of every parameter."""
    config = {name: value for name, value in _causal_lm(model).config.to_dict().items() if name not in _NOT_IDENTITY}
    digest = hashlib.sha256(json.dumps([config, _adapters(model)], sort_keys=True, default=_plain).encode())
    for name, value in model.named_parameters():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta":
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _adapters(model):
    """Settings of the adapters in force: the same adapter weights count for more with a larger ``lora_alpha``."""
    active = getattr(model, "active_adapters", []) if hasattr(model, "peft_config") else []
    settings = [model.peft_config[name].to_dict() for name in active]
    return [{name: value for name, value in each.items() if name not in _NOT_IDENTITY} for each in settings]


def _plain(value):
    return sorted(map(str, value)) if isinstance(value, set) else str(value)  # a set has another order in each process
