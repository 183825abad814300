"""What a training reports, and the book it is kept in, step by step, across kills and restarts."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from codeact_lib.artifacts import atomic_write
from codeact_lib.errors import ModelError
from codeact_lib.measure import environment_facts


@dataclass
class TrainReport:
    """What a training did and what it cost: the content of `train_metrics.json`.

    `seconds` is the training loop without writing checkpoints, added up over the attempts that led to the result.
    `peak_memory_bytes` is the CUDA allocator's peak (`peak_reserved_bytes`: what it had taken from the device), or
    without a GPU how far resident memory grew above that of the resting process with the model loaded
    (`peak_memory_kind`); both are those of the first process. `slots` are tokens with padding, `epochs` times the data
    was seen. `final_loss` is the mean over the last tenth of the optimizer steps, per supervised token; a point of
    `loss_curve` has the step and the supervised tokens up to it. `model_flops_utilization` is the share of the devices'
    peak that went into useful work (`utilization.model_flops`), null where that peak is unknown. `isolation_error` is
    what the start-up test measured: the largest difference between a sample's loss packed and alone. `memory_plan` is
    what `memory_planner` predicted and lowered, null where the device's memory was not known.
    """

    seconds: float
    optimizer_steps: int
    n_samples: int
    epochs: float
    samples_per_second: float
    supervised_tokens: int
    supervised_tokens_per_second: float
    tokens: int
    slots: int
    padding_rate: float
    rows: int
    peak_memory_bytes: int
    peak_memory_kind: str
    peak_reserved_bytes: int | None
    model_flops: float
    model_flops_utilization: float | None
    final_loss: float
    loss_curve: list
    strategy: str
    isolate: bool
    packing_scope: str
    isolation_error: float | None
    tuning: str
    attn_implementation: str
    template_sha256: str
    dropped: dict
    truncated: int
    processes: int
    resumed: bool
    hardware: dict
    memory_plan: dict | None = None

    def to_dict(self) -> dict:
        return asdict(self)


COUNTS = ("samples", "rows", "slots", "tokens", "supervised", "pairs")


@dataclass
class LogBook:
    """Everything measured so far; kept in the checkpoints so that a resumed training reports all of itself."""

    identity: str
    seconds: float = 0.0  # of the training loop up to the last checkpoint
    seen: dict = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))  # over all processes
    losses: list = field(default_factory=list)  # one per optimizer step, per supervised token
    supervised: list = field(default_factory=list)  # supervised tokens up to and with each step
    learning_rates: list = field(default_factory=list)
    isolation_error: float | None = None
    peak_memory_bytes: int = 0
    peak_memory_kind: str = ""
    peak_reserved_bytes: int | None = None
    started: float | None = None  # on the monotonic clock, set so that now - started is seconds

    def see_memory(self, memory) -> None:
        self.peak_memory_bytes, self.peak_memory_kind = max(self.peak_memory_bytes, memory.bytes()), memory.kind
        reserved = memory.reserved_bytes()
        self.peak_reserved_bytes = reserved and max(self.peak_reserved_bytes or 0, reserved)

    def count(self, counts: dict) -> None:
        for name in COUNTS:
            self.seen[name] += counts[name]

    def finish_step(self, loss, learning_rate: float) -> None:
        """Note a step; its loss stays a tensor where it is (no wait for the device)."""
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)
        self.supervised.append(self.seen["supervised"])

    def settle(self) -> None:
        """Bring the losses over from the device; ModelError as soon as one is not a number."""
        self.losses = [float(loss) for loss in self.losses]
        bad = next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise ModelError(f"the loss is {self.losses[bad]} at step {bad + 1}: lower learning_rate, or drop fp16")

    def state(self, now: float) -> dict:
        self.settle()
        assert self.started is not None, "begun"
        return {**asdict(self), "seconds": now - self.started, "started": None}

    def report(self, *, n_samples, logging_steps, **facts) -> TrainReport:
        seen, steps = self.seen, len(self.losses)
        return TrainReport(
            seconds=self.seconds,
            optimizer_steps=steps,
            n_samples=n_samples,
            epochs=seen["samples"] / n_samples,
            samples_per_second=seen["samples"] / self.seconds,
            supervised_tokens=seen["supervised"],
            supervised_tokens_per_second=seen["supervised"] / self.seconds,
            tokens=seen["tokens"],
            slots=seen["slots"],
            padding_rate=1 - seen["tokens"] / seen["slots"],
            rows=seen["rows"],
            peak_memory_bytes=self.peak_memory_bytes,
            peak_memory_kind=self.peak_memory_kind,
            peak_reserved_bytes=self.peak_reserved_bytes,
            final_loss=float(np.mean(self.losses[-max(1, steps // 10) :])),
            loss_curve=self.curve(logging_steps),
            isolation_error=self.isolation_error,
            hardware=environment_facts(),
            **facts,
        )

    def curve(self, every: int) -> list[dict]:
        """Mean loss of each `every` steps, at their last step."""
        windows = [range(start, min(start + every, len(self.losses))) for start in range(0, len(self.losses), every)]
        return [
            {
                "step": window[-1] + 1,
                "loss": float(np.mean([self.losses[step] for step in window])),
                "supervised_tokens": self.supervised[window[-1]],
                "learning_rate": self.learning_rates[window[-1]],
            }
            for window in windows
        ]


def write_model_card(folder, report, *, base_model, revision=None, title="CodeACT model", data=None, arguments=None):
    """Write `folder`/README.md from a `TrainReport`; `data` and `arguments` are shown line by line as given."""
    environment = Environment(
        loader=PackageLoader("codeact_lib"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    card = environment.get_template("model_card.md.j2").render(
        report=report, base_model=base_model, revision=revision, title=title, data=data or {}, arguments=arguments or {}
    )
    with atomic_write(Path(folder) / "README.md") as file:
        file.write(card)
