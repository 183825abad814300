"""``codeact run --jobs N``: N processes of the same run on one machine, which share it by claims."""

from __future__ import annotations

import os
import threading

from codeact_lib.errors import CodeActError
from codeact_lib.processes import child_environment, end_with, start

PARENT = "CODEACT_PARENT"  # a job ends when the process of this id is gone


class JobsFailed(CodeActError):
    """Some of the jobs did not finish; what each had to say was printed when it happened."""


def run_jobs(number, options, *, cwd=None, say=print):
    """Start ``codeact run`` with ``options`` (words of a command line) ``number`` times in ``cwd``; wait for all.

    Each line a job prints is said with the job's number in front. The cores are shared out: with 4 cores and 2 jobs
    each computes with 2 threads, unless OMP_NUM_THREADS says otherwise. ``JobsFailed`` when one of them failed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = {"OMP_NUM_THREADS": str(max(1, cores // number)), **child_environment(), PARENT: str(os.getpid())}
    command = ["-m", "codeact_lib.cli", "run", *options]
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


def _relay(job, prefix, say):
    for line in job.stdout:
        say(prefix + line.rstrip("\n"))


def leave_with_parent():
    """In a job: end when the process that started it ends, or it would go on with nobody watching."""
    if os.environ.get(PARENT):
        end_with(int(os.environ.pop(PARENT)))
