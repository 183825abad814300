"""What a piece of work costs (memory, floating-point operations), on what machine, and what to do without memory."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import resource
import sys
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psutil
import yaml

# torch is imported where it is needed: the runner asks for facts of the machine and must start at once.
if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

Batch = TypeVar("Batch")
Result = TypeVar("Result")

GPUS: dict[str, dict[str, float]] = yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text(encoding="utf-8"))
RECORDED_PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "sentence-transformers"),
    *("scikit-learn", "numpy", "pandas", "evalplus", "papermill"),
)


@functools.lru_cache(maxsize=1)
def environment_facts() -> dict[str, Any]:
    """Versions and hardware that a number depends on: python, packages, cpu, cores, gpu, ram_gib, platform."""
    # never the host name, the user or a path: this is published with the tables
    packages = {}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):  # on Linux `platform` knows the architecture only
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = None
    torch = sys.modules.get("torch")  # not imported for the sake of asking: that takes 2 s
    if torch and torch.cuda.is_available():
        gpu = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    elif torch and torch.backends.mps.is_available():
        gpu = "Apple GPU (mps)"
    return {
        "python": platform.python_version(),
        "packages": packages,
        "cpu": cpu,
        "cores": usable_cores(),
        "gpu": gpu,
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """Cores that this process may use: a container or a batch system may have given it a part of the machine."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- memory ----------------------------------------------------------------------------------------------------------


class PeakMemory:
    """Peak memory inside a `with` block: the allocator's on a GPU, elsewhere the growth of resident memory in it."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.kind = "cuda_allocated" if torch.cuda.is_available() else "rss_growth"

    def __enter__(self) -> Self:
        torch = self.torch
        if self.kind == "cuda_allocated":
            torch.cuda.reset_peak_memory_stats()
            return self
        # One optimizer step on one number: the modules it loads on first use are not memory of the training.
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([weight])
        weight.sum().backward()
        optimizer.step()
        gc.collect()
        self.process = psutil.Process()
        self.mark_before = high_water_mark()
        self.rest = self.sampled = self.process.memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.kind == "rss_growth":
            self.done.set()
            self.thread.join()

    def _sample(self) -> None:
        while not self.done.wait(0.02):
            self.sampled = max(self.sampled, self.process.memory_info().rss)

    def bytes(self) -> int:
        """Peak up to now."""
        if self.kind == "cuda_allocated":
            return self.torch.cuda.max_memory_allocated()
        # Samples, one in 20 ms, can miss a spike, which the kernel's high-water mark has; but a mark that was left by
        # something earlier says nothing about the block.
        mark = high_water_mark()
        if mark > self.mark_before:
            return max(self.sampled, mark) - self.rest
        return self.sampled - self.rest

    def reserved_bytes(self) -> int | None:
        """Peak of what the allocator had taken from the device, used or not; None without a GPU."""
        return self.torch.cuda.max_memory_reserved() if self.kind == "cuda_allocated" else None


def high_water_mark() -> int:
    """Largest resident memory of this process so far, in bytes."""
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024  # Linux counts in KiB


def unless_out_of_memory(score: Callable[[Batch], Result], batch: Batch) -> Result | None:
    """What `score` makes of a batch, or None where memory is out; the failed attempt's tensors are gone on return."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")  # CUDA, CPU, cuBLAS
    try:
        return score(batch)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in words):
            raise
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


# ---- floating-point operations ---------------------------------------------------------------------------------------


def model_flops(model: PreTrainedModel, tokens: int, pairs: int) -> float:
    """Floating-point operations of forward and backward over `tokens` tokens in samples of squared length `pairs`.

    As usual (PaLM, arXiv 2204.02311, appendix B): real tokens only, so padding counts as nothing, and nothing for what
    gradient checkpointing computes twice.
    """
    # Two per weight and token in the forward pass, and 4 d n^2 / 2 per layer for causal attention over n tokens (width
    # d). The backward pass costs twice that; half of it where the weights stand still, as under an adapter. The input
    # embedding is a look-up and counts nothing, unless the head shares it.
    config = model.config
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings()
    weights = _size(model) - _size(embeddings)
    if head is not None and head.weight is embeddings.weight:
        weights += _size(head)
    forward = 2 * weights * tokens + 2 * config.num_hidden_layers * config.hidden_size * pairs
    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    return float(forward * (2 if frozen else 3))


def _size(module: Module) -> int:
    """Weights of a module; a 4-bit layer packs two into each number it holds."""
    return sum(p.numel() * (2 if hasattr(p, "quant_state") else 1) for p in module.parameters())


def peak_flops_per_second(half_precision: bool = True) -> float | None:
    """The peak of the current GPU, or None without one, for an unknown one and in single precision."""
    import torch

    if torch.cuda.is_available() and half_precision:
        return peak_of(torch.cuda.get_device_name())
    return None


def peak_of(name: str) -> float | None:
    """FLOP/s of a GPU by its name, None when it is not in the table."""
    return next((row["tflops"] * 1e12 for key, row in GPUS.items() if key in name), None)


def clock(seconds: float) -> str:
    """`45 s`, `2:05 min`, `3:07 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def time_unit(seconds: float) -> tuple[float, str]:
    """Divisor and name of the unit that fits a number of seconds: s below 2 min, min below 2 days, h above."""
    if seconds < 120:
        return 1.0, "s"
    if seconds < 172_800:
        return 60.0, "min"
    return 3600.0, "h"


def memory_unit(n_bytes: float) -> tuple[float, str]:
    """Divisor and name of the unit that fits a number of bytes: MiB (2**20) below 1 GiB (2**30)."""
    return (2**20, "MiB") if n_bytes < 2**30 else (2**30, "GiB")


def decimals(value: float) -> int:
    """Decimals that leave a number about three significant digits: none from 100 on, one from 10 on, else two."""
    if abs(value) >= 100:
        return 0
    return 1 if abs(value) >= 10 else 2


def number(value: float) -> str:
    """A measured number with three significant digits where it has decimals: 1,234 / 58.3 / 2.07 / 63."""
    return f"{value:,.{decimals(value)}f}".removesuffix(".00").removesuffix(".0")
