"""Some sixty hostile and faulty solutions under each rung: each costs its own verdict and nothing else.

The table in docs/isolation.md is what these runs saw; CODEACT_WRITE_DOCS=1 writes it anew.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPO
from hostile import ATTACKS, CARRIERS, HONEST, ONLY_IN_NAMESPACES

from codeact_lib.evaluation.benchmarks import Benchmark
from codeact_lib.evaluation.judge import evaluate_solutions
from codeact_lib.sandbox.backends import BACKENDS, LADDER, unprivileged_user
from codeact_lib.sandbox.run import probe_isolation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the attacks are written for Linux")
AVAILABLE = [report.name for report in probe_isolation() if report.available]
TABLE = REPO / "docs" / "isolation.md"
SEEN = TABLE.with_suffix(".json")
GIB = 1 << 30


def add_task(number):
    fields = {"entry_point": "add", "prompt": "def add(a, b):\n", "canonical_solution": "    return a + b\n"}
    return {"task_id": f"Test/{number}", **fields, "base_input": [[1, 2]], "plus_input": [[3, 4]], "atol": 1e-6}


PLACES = ("home/.ssh", "project", "results", "runs", "cache")


class World:
    """What a solution may try to reach: files, sockets and a process that are there for this purpose only."""

    def __init__(self, folder):
        self.folder = folder
        for name in PLACES:
            (folder / name).mkdir(parents=True)
        self.files = {"home/.ssh/id_rsa": "key", "project/.env": "TOKEN=1", "results/metrics.json": "{}"}
        for name, text in self.files.items():
            (folder / name).write_text(text)
        self.secret = folder / "secret"
        self.secret.write_text("3")
        self.marks = self.marks_now()
        self.entries = self.listing()
        command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
        self.outsiders = [subprocess.Popen(command, start_new_session=True) for _ in range(2)]
        self.processes = self.processes_now()
        self.tcp, self.udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.unix, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.udp.bind(("127.0.0.1", 0))
        self.unix.bind(str(folder / "s"))
        self.mark = f"codeact-test-{folder.name}"
        self.abstract.bind(f"\0{self.mark}")
        for server in (self.unix, self.abstract):
            server.listen(64)
        threading.Thread(target=self.answer_udp, daemon=True).start()

    def answer_udp(self):
        with contextlib.suppress(OSError):
            while True:
                self.udp.sendto(b"y", self.udp.recvfrom(1)[1])

    def facts(self):
        places = {name: str(self.folder / name) for name in ("home", "project", "results", "runs", "cache")}
        ports = {"tcp": self.tcp.getsockname()[1], "udp": self.udp.getsockname()[1]}
        sockets = {"unix": str(self.folder / "s"), "abstract": self.mark}
        return {
            **places,
            **ports,
            **sockets,
            "secret": str(self.secret),
            "mark": self.mark,
            "outsiders": [process.pid for process in self.outsiders],
            "evaluator": os.getpid(),
        }

    def marks_now(self):
        """What may be changed of a file without opening it, and what could be changed of a process."""
        file, home = self.secret.stat(), (self.folder / "home").stat()
        return {
            "the mode": file.st_mode,
            "the mode, through a handle": file.st_mode,
            "the times": file.st_mtime_ns,
            "an attribute": os.listxattr(self.secret),
            "the owner": (file.st_uid, file.st_gid),
            "the mode of the home": home.st_mode,
        }

    def processes_now(self):
        outsider, evaluator = psutil.Process(self.outsiders[1].pid), psutil.Process()
        return {
            "priority of an outsider": outsider.nice(),
            "processors of an outsider": outsider.cpu_affinity(),
            "policy of an outsider": os.sched_getscheduler(outsider.pid),
            "a limit of an outsider": outsider.rlimit(psutil.RLIMIT_CORE),
            "a limit of the evaluator": evaluator.rlimit(psutil.RLIMIT_NOFILE),
        }

    def listing(self):
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.name != "s")

    def effects(self):
        """Attack -> whether it left a trace outside of the box, looked at from outside."""
        home, status = self.folder / "home", [psutil.Process(p.pid).status() for p in self.outsiders]
        now = {**self.marks_now(), **self.processes_now()}
        before = {**self.marks, **self.processes}
        return {
            **{name: value != before[name] for name, value in now.items()},
            "the home": (home / "hostile.txt").exists(),
            "the results of this evaluation": (self.folder / "results" / "verdicts.json").exists(),
            "the project": (self.folder / "project" / "hostile.txt").exists(),
            "EvalPlus's cache (a forged pickle)": (self.folder / "cache" / "ground_truth.pkl").exists(),
            "delete the results": not (self.folder / "results" / "metrics.json").exists(),
            "rename a folder of results": not (self.folder / "runs").exists(),
            "a link out of the box": (home / "link").is_symlink(),
            "an answer that unpickles into a call": (home / "unpickled").exists(),
            "kill an outsider": status[0] == psutil.STATUS_ZOMBIE,
            "stop an outsider": status[1] == psutil.STATUS_STOPPED,
            "a daemon that outlives it": bool(self.marked_processes()),
        }

    def is_untouched(self):
        """Whether the files are as they were, and nothing of what `effects` looks for is there."""
        same = all((self.folder / name).read_text() == text for name, text in self.files.items())
        return same and self.listing() == self.entries and not any(self.effects().values())

    def marked_processes(self):
        return [p for p in psutil.process_iter(["cmdline"]) if self.mark in (p.info["cmdline"] or ())]

    def close(self):
        for process in self.marked_processes():
            process.kill()
        for outsider in self.outsiders:
            outsider.kill()
            outsider.wait()
        for server in (self.tcp, self.udp, self.unix, self.abstract):
            server.close()
        for place in ("/tmp", "/var/tmp", "/dev/shm"):
            Path(place, self.mark).unlink(missing_ok=True)


@pytest.fixture
def world():
    """In the home where that can be written: a box may hide /tmp for another reason."""
    home = Path.home()
    folder = Path(tempfile.mkdtemp(prefix=".codeact-test-", dir=home if os.access(home, os.W_OK) else None))
    world = World(folder)
    yield world
    world.close()
    shutil.rmtree(folder)


def attacks_for(rung):
    """[(group, name, code)] of what may be tried under a rung."""
    more = ONLY_IN_NAMESPACES if BACKENDS[rung].fresh_tmp else {}
    return [(g, n, c) for group in (ATTACKS, more) for g, found in group.items() for n, c in found.items()]


def test_there_are_at_least_forty_and_each_has_a_name_of_its_own():
    names = [name for _, name, _ in attacks_for("bubblewrap")]
    assert len(names) == len(set(names)) >= 40


OUTCOMES = {}


@pytest.mark.slow
@pytest.mark.parametrize("rung", AVAILABLE)
def test_a_hostile_solution_costs_its_own_verdict_and_nothing_else(rung, world, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEACT_TEST_TOKEN", "secret")
    attacks = attacks_for(rung)
    head = f"WORLD = {world.facts()!r}\n"
    codes = [(f"{group}: {name}", head + code if code else "") for group, name, code in attacks]
    mixed = [pair for n, pair in enumerate(codes) for pair in ([pair, ("honest", HONEST)] if n % 3 == 0 else [pair])]
    tasks = [add_task(number) for number in range(len(mixed))]
    samples = [{"task_id": t["task_id"], "solution": code} for t, (_, code) in zip(tasks, mixed, strict=True)]
    benchmark = Benchmark("hostile", "humaneval", "test", "0", tasks)
    limits = {"min_time_limit": 0.5, "task_seconds": 20.0, "total_memory": 3 * GIB // 2, "parallel": 2}
    start = time.monotonic()
    result = evaluate_solutions(
        samples, benchmark, output_dir=tmp_path, isolation=rung, sanitize=False, cache_dir=tmp_path, say=None, **limits
    )
    verdicts = list(zip((name for name, _ in mixed), result.verdicts.values(), strict=True))
    OUTCOMES[rung] = {name: verdict for name, verdict in verdicts if name != "honest"}
    OUTCOMES[rung]["effects"] = {f"{g}: {n}": world.effects()[n] for g, n, _ in attacks if n in world.effects()}
    OUTCOMES[rung]["plain"] = {
        name for (name, _), task in zip(mixed, tasks, strict=True) if passed_plainly(tmp_path, task)
    }
    print(rung, f"{time.monotonic() - start:.0f} s", result.incidents)
    assert [verdict for name, verdict in verdicts if name == "honest" and verdict["plus"] != "pass"] == []
    assert [name for name, verdict in verdicts if name != "honest" and "pass" in verdict.values()] == []
    assert result.isolation == rung
    if BACKENDS[rung].fresh_tmp:
        assert world.is_untouched()


@pytest.mark.slow
@pytest.mark.parametrize("rung", AVAILABLE)
def test_what_one_evaluation_was_shown_does_not_reach_the_next(rung, world, tmp_path):
    head = f"WORLD = {world.facts()!r}\n"
    tasks = [add_task(number) for number in range(len(CARRIERS))]
    samples = [{"task_id": t["task_id"], "solution": head + c} for t, c in zip(tasks, CARRIERS.values(), strict=True)]
    benchmark = Benchmark("carriers", "humaneval", "test", "0", tasks)
    for attempt in ("first", "second", "third"):
        result = evaluate_solutions(
            samples,
            benchmark,
            output_dir=tmp_path / attempt,
            isolation=rung,
            sanitize=False,
            cache_dir=tmp_path,
            say=None,
        )
        counted = [task for task, verdict in result.verdicts.items() if "pass" in verdict.values()]
        assert [name for name, task in zip(CARRIERS, tasks, strict=True) if task["task_id"] in counted] == []


def passed_plainly(folder, task):
    return json.loads((folder / "verdicts.json").read_text())["evalplus"][task["task_id"]]["base_status"] == "pass"


KINDS = ("root", "root as another user", "an ordinary user")


def kind_of_user():
    if os.geteuid() != 0:
        return KINDS[2]
    return KINDS[0] if unprivileged_user("landlock", []) is None else KINDS[1]


def outcome(name, code, seen):
    """What became of an attack under a rung."""
    if name in seen["plain"]:
        return "EvalPlus alone says pass; not counted"
    if seen["effects"].get(name, seen[name]["failure"] == "wrong" and "got through" in code):
        return "**gets through**"
    return "stopped" if "got through" in code else "fails"


def record_outcomes():
    """Put what these runs saw beside what other users saw."""
    seen = json.loads(SEEN.read_text(encoding="utf-8")) if SEEN.exists() else {}
    found = {}
    for rung, verdicts in OUTCOMES.items():
        found[rung] = {f"{g}: {n}": outcome(f"{g}: {n}", code, verdicts) for g, n, code in attacks_for(rung)}
    SEEN.write_text(json.dumps({**seen, kind_of_user(): found}, indent=1) + "\n", encoding="utf-8")


def table():
    """docs/isolation.md as all kinds of users saw it: one word where they saw the same."""
    seen = json.loads(SEEN.read_text(encoding="utf-8"))
    kinds = [kind for kind in KINDS if kind in seen]
    lines = [f"| solution | {' | '.join(LADDER)} |", "|---|" + "---|" * len(LADDER)]
    for group, name, _ in attacks_for("bubblewrap"):
        cells = []
        for rung in LADDER:
            outcomes = {kind: seen[kind].get(rung, {}).get(f"{group}: {name}", "not tried") for kind in kinds}
            words = list(dict.fromkeys(outcomes.values()))
            if len(words) > 1:
                words = [f"{word} ({' and '.join(k for k in kinds if outcomes[k] == word)})" for word in words]
            cells.append("; ".join(words))
        lines.append(f"| {group}: {name} | {' | '.join(cells)} |")
    users = ", ".join(kinds)
    return HEAD.format(n=len(lines) - 2, carriers=", ".join(CARRIERS), users=users) + "\n".join(lines) + "\n"


HEAD = """# What each isolation stops

Made by `CODEACT_WRITE_DOCS=1 pytest tests/sandbox/test_hostile.py` (outcomes: `isolation.json`): {n} solutions
written for this project (`tests/hostile.py`), judged among honest ones under each isolation, as each kind of user:
{users}. (Root becomes another user in a box where that user can reach Python; under
bubblewrap always.) Under every one of them each costs its own verdict only, and none gets a counted pass.

- *stopped*: it did not get what it wanted.
- **gets through**: it did.
- *fails*: it wants nothing but to disturb; it is a failure like any other.
- *EvalPlus alone says pass; not counted*: a faked pass. It is listed as unconfirmed, for the solution did not
  give these answers where no expected output was.

Behind every isolation a filter of system calls (seccomp; `tools/seccomp_filter.py` lists them) refuses what no solution
of a benchmark needs: kernel keyrings, System V and POSIX queues and memory, marks on files (modes, times, owners,
attributes), looking into other processes or changing their limits and priorities, files without a name, namespaces,
sockets, and calls that came with Linux 6.8 or later. It is made for x86_64 and aarch64; on other machines, and outside
of Linux, there is none.

Expected outputs of one evaluation do not reach the next: tried in three evaluations in a row with {carriers}.

What `limits` does not stop: it has no files of its own. A solution can read and write what the user who evaluates can
(as root it is another user, who can read what everybody can). It may find the benchmark's own file on the disk and
answer from it; under the others it cannot see the file. Signals to processes of the same user get through too. Two
evaluations at the same time can write into each other, and one that is killed begins anew: its verdicts would lie where
a solution can write. Under the others it goes on with what was judged.

What stays doubted: an output with an `__eq__` of its own is never confirmed, nor is one that is no data (a function, a
file); list, tuple, set, dict and their views, numbers (int, float, complex, Fraction, Decimal), text, bytes, range,
iterators and numpy arrays are.

"""


@pytest.mark.slow
def test_the_table_in_the_docs_names_every_attack_and_is_written_from_these_runs():
    if os.environ.get("CODEACT_WRITE_DOCS") and len(OUTCOMES) == len(AVAILABLE):
        record_outcomes()
        TABLE.write_text(table(), encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in TABLE.read_text(encoding="utf-8").splitlines()]
    assert {f"{group}: {name}" for group, name, _ in attacks_for("bubblewrap")} <= set(rows)
