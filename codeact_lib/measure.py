"""Peak memory of a piece of work: the allocator's on a GPU, the growth of resident memory elsewhere."""

import gc
import resource
import sys
import threading

import psutil
import torch


class PeakMemory:
    """Peak memory inside a `with` block.

    On a GPU the allocator's own peak, and what it had reserved on the device. Elsewhere the growth of resident memory
    over what the process held on entering the block: sampled every 20 ms, and taken from the kernel's high-water mark
    where the block raised it (samples can miss a spike; a mark left by something earlier says nothing about the block).
    """

    def __init__(self):
        self.kind = "cuda_allocated" if torch.cuda.is_available() else "rss_growth"

    def __enter__(self):
        if self.kind == "cuda_allocated":
            torch.cuda.reset_peak_memory_stats()
            return self
        _import_what_training_imports()
        gc.collect()
        self.process, self.mark_before = psutil.Process(), _high_water_mark()
        self.rest = self.sampled = self.process.memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        if self.kind == "rss_growth":
            self.done.set()
            self.thread.join()

    def _sample(self):
        while not self.done.wait(0.02):
            self.sampled = max(self.sampled, self.process.memory_info().rss)

    def bytes(self) -> int:
        """Peak up to now."""
        if self.kind == "cuda_allocated":
            return torch.cuda.max_memory_allocated()
        mark = _high_water_mark()
        return max(self.sampled, mark if mark > self.mark_before else 0) - self.rest

    def reserved_bytes(self) -> int | None:
        """Peak of what the allocator had taken from the device, used or not; None without a GPU."""
        return torch.cuda.max_memory_reserved() if self.kind == "cuda_allocated" else None


def _high_water_mark() -> int:
    """Largest resident memory of this process so far, in bytes."""
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024


def _import_what_training_imports() -> None:
    """One optimizer step on one number: the modules it loads on first use are not memory of the training."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
