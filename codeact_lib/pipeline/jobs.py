"""`codeact run --jobs N`: N processes of the same run on one machine, which share it by their locks."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from codeact_lib.errors import CodeActError
from codeact_lib.measure import usable_cores
from codeact_lib.processes import child_environment, start


class JobsFailed(CodeActError):
    """Some of the jobs did not finish; what each had to say was printed when it happened."""


def run_jobs(
    number: int, options: Sequence[str], *, cwd: Path | None = None, say: Callable[[str], object] = print
) -> None:
    """Start `codeact run` with `options` (words of a command line) `number` times in `cwd`; wait for all.

    Each line a job prints is said with the job's number in front. The cores are shared out: with 4 cores and 2 jobs
    each computes with 2 threads, unless OMP_NUM_THREADS says otherwise. `JobsFailed` when one of them failed.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, usable_cores() // number)), **child_environment()}
    # a job ends when this process is gone, or it would go on with nobody watching
    command = ["-m", "codeact_lib.cli", "run", "--parent", str(os.getpid()), *options]
    jobs = [start(command, cwd=cwd, env=environment) for _ in range(number)]
    threads = [threading.Thread(target=_relay, args=(job, f"{n}| ", say)) for n, job in enumerate(jobs, 1)]
    for thread in threads:
        thread.start()
    try:
        failed = [n for n, job in enumerate(jobs, 1) if job.wait()]
    except BaseException:
        for job in jobs:
            job.terminate()
        raise
    finally:
        for thread in threads:
            thread.join()
    if failed:
        raise JobsFailed(f"{len(failed)} of {number} jobs failed; the reason stands above, after {failed[0]}|")


def _relay(job: subprocess.Popen[str], prefix: str, say: Callable[[str], object]) -> None:
    for line in job.stdout or ():
        say(prefix + line.rstrip("\n"))
