"""What a training reports, and the recorder that measures it step by step, across kills and restarts."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from codeact_lib.errors import ModelError
from codeact_lib.measure import PeakMemory


@dataclass
class TrainReport:
    """What a training did and what it cost: the content of `train_metrics.json`."""

    seconds: float  # of the loop without writing checkpoints, over all attempts that led to the result
    optimizer_steps: int
    n_samples: int
    epochs: float  # times the data was seen
    samples_per_second: float
    supervised_tokens: int
    supervised_tokens_per_second: float
    tokens: int
    slots: int  # tokens with padding
    padding_rate: float
    rows: int
    # Of the first process: the CUDA allocator's peak and what it had taken from the device; without a GPU how far
    # resident memory grew above that of the resting process with the model loaded.
    peak_memory_bytes: int
    peak_memory_kind: str
    peak_reserved_bytes: int | None
    model_flops: float
    model_flops_utilization: float | None  # share of the devices' peak (`measure.model_flops`), where that is known
    final_loss: float  # mean over the last tenth of the optimizer steps, per supervised token
    loss_curve: list[dict[str, Any]]  # points with the step and the supervised tokens up to it
    strategy: str
    isolate: bool
    packing_scope: str
    isolation_error: float | None  # the largest difference between a sample's loss packed and alone, before step one
    tuning: str
    attn_implementation: str
    template_sha256: str
    dropped: dict[str, int]
    truncated: int
    processes: int
    resumed: bool
    hardware: dict[str, Any]
    memory_plan: dict[str, Any] | None = None  # of `memory.fit_layout`, where the device's memory was known


@dataclass
class TrainRecorder:
    """Everything measured so far; `state` goes into the checkpoints, so that a resumed training reports all of itself.

    `TrainRecorder(**state)` goes on from there: its clock stands at the seconds of the checkpoint until `begin`.
    """

    identity: str
    seconds: float = 0.0  # of the training loop, up to the last checkpoint or the end
    seen: dict[str, int] = field(default_factory=dict)  # sums of `steps.Step` counts, over all processes
    losses: list[Any] = field(default_factory=list)  # one per optimizer step, per supervised token
    supervised: list[int] = field(default_factory=list)  # supervised tokens up to and with each step
    learning_rates: list[float] = field(default_factory=list)
    isolation_error: float | None = None
    peak_memory_bytes: int = 0
    peak_memory_kind: str = ""
    peak_reserved_bytes: int | None = None
    started: float = 0.0  # on the monotonic clock, so that now - started is seconds

    def begin(self) -> None:
        """Start the clock."""
        self.started = time.monotonic() - self.seconds

    def stop(self, memory: PeakMemory) -> None:
        """Bring the seconds up to date, and the peak, where it is higher than that of the attempts before."""
        self.seconds = time.monotonic() - self.started
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory.bytes())
        self.peak_memory_kind = memory.kind
        reserved = memory.reserved_bytes()
        if reserved is not None:
            self.peak_reserved_bytes = max(self.peak_reserved_bytes or 0, reserved)

    def count(self, counts: Mapping[str, int]) -> None:
        """Add what a step holds."""
        for name, number in counts.items():
            self.seen[name] = self.seen.get(name, 0) + number

    def finish_step(self, loss: Any, learning_rate: float) -> None:
        """Note a step."""
        # Its loss stays a tensor on the device: a number would have to be waited for, in every step.
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)
        self.supervised.append(self.seen["supervised"])

    def settle(self) -> None:
        """Bring the losses over from the device; ModelError as soon as one is not a number."""
        self.losses = [float(loss) for loss in self.losses]
        for step, loss in enumerate(self.losses, 1):
            if not math.isfinite(loss):
                raise ModelError(f"the loss is {loss} at step {step}: lower learning_rate, or drop fp16")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON takes it."""
        self.settle()
        # The monotonic clock of this process means nothing to the next one.
        return {**asdict(self), "started": 0.0}

    def curve(self, every: int) -> list[dict[str, Any]]:
        """Mean loss of each `every` steps, at their last step."""
        points = []
        for start in range(0, len(self.losses), every):
            window = self.losses[start : start + every]
            last = start + len(window) - 1
            point = {"step": last + 1, "loss": float(np.mean(window)), "supervised_tokens": self.supervised[last]}
            points.append({**point, "learning_rate": self.learning_rates[last]})
        return points
