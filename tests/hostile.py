"""Hostile and faulty solutions of the task "add two numbers", written for this project.

Each is Python text. `attack` bodies return whether they got what they wanted: the solution then answers wrongly, and
raises otherwise, so that its kind of failure tells which. What they do outside is looked at from outside as well.
Everything is bounded: no flood goes on for ever, nothing is aimed at a process that the test did not start.
"""

import textwrap

FOOTER = """
GOT = attack()
def add(a, b):
    if GOT:
        return "got through"
    raise RuntimeError("stopped")
"""
HONEST = "def add(a, b):\n    return a + b\n"


def attack(body):
    return (
        "import ctypes, os, posix, signal, socket, sys, time\ndef attack():\n"
        + textwrap.indent(textwrap.dedent(body).strip() + "\n", "    ")
        + FOOTER
    )


def write(key, name="hostile.txt"):
    return attack(f"""
        handle = posix.open(WORLD[{key!r}] + "/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        return posix.write(handle, b"x") == 1
    """)


def read(path):
    return attack(f"return len(posix.read(posix.open({path}, os.O_RDONLY), 10)) > 0")


def faked(code):
    return textwrap.dedent(code).strip() + "\n"


def neighbours(kind):
    """Signal the solutions that run beside it: processes of the same program that have a handler for alarms."""
    return faked(f"""
        import os, posix, signal, time
        def content(path):
            try:
                handle = posix.open(path, os.O_RDONLY)
                try:
                    return posix.read(handle, 1 << 14)
                finally:
                    posix.close(handle)
            except OSError:
                return b""
        def beside():
            program = content("/proc/self/cmdline")
            for name in posix.listdir("/proc") if program else ():
                if name.isdigit() and int(name) != posix.getpid() and content(f"/proc/{{name}}/cmdline") == program:
                    caught = content(f"/proc/{{name}}/status").partition(b"SigCgt:")[2].split()
                    if caught and int(caught[0], 16) >> (signal.SIGALRM - 1) & 1:
                        yield int(name)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for pid in beside():
                try:
                    posix.kill(pid, signal.{kind})
                except OSError:
                    pass
        def add(a, b):
            return None
    """)


SEARCH = """
import sys
def frames():
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back
"""

# group -> name -> solution
ATTACKS = {
    "read secrets": {
        "a key in the home": read('WORLD["home"] + "/.ssh/id_rsa"'),
        "a token in the project's folder": read('WORLD["project"] + "/.env"'),
        "the list of users": read('"/etc/passwd"'),
        "the environment of the evaluator": read("f\"/proc/{WORLD['evaluator']}/environ\""),
        "the memory of the evaluator": attack("""
            handle = posix.open(f"/proc/{WORLD['evaluator']}/maps", os.O_RDONLY)
            return len(posix.read(handle, 100)) > 0
        """),
        "list the home": attack("return len(posix.listdir(WORLD['home'])) > 0"),
        "a token among the variables": attack("return 'CODEACT_TEST_TOKEN' in os.environ"),
    },
    "write outside": {
        "the home": write("home"),
        "the results of this evaluation": write("results", "verdicts.json"),
        "the project": write("project"),
        "EvalPlus's cache (a forged pickle)": write("cache", "ground_truth.pkl"),
        "delete the results": attack("posix.unlink(WORLD['results'] + '/metrics.json'); return True"),
        "rename a folder of results": attack("posix.rename(WORLD['runs'], WORLD['runs'] + '.old'); return True"),
        "a link out of the box": attack("posix.symlink('/', WORLD['home'] + '/link'); return True"),
    },
    "network": {
        "TCP to this machine": attack("socket.create_connection(('127.0.0.1', WORLD['tcp']), timeout=1); return True"),
        "UDP to this machine": attack("""
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.settimeout(1)
                udp.sendto(b"x", ("127.0.0.1", WORLD["udp"]))
                return udp.recv(1) == b"y"
        """),
        "a Unix socket": attack("socket.socket(socket.AF_UNIX).connect(WORLD['unix']); return True"),
        "an abstract socket": attack("socket.socket(socket.AF_UNIX).connect('\\0' + WORLD['abstract']); return True"),
    },
    "other processes": {
        "kill an outsider": attack("posix.kill(WORLD['outsiders'][0], signal.SIGKILL); return True"),
        "stop an outsider": attack("posix.kill(WORLD['outsiders'][1], signal.SIGSTOP); return True"),
        "kill its parent": attack("posix.kill(posix.getppid(), signal.SIGKILL); time.sleep(5); return True"),
        "kill its process group": attack("posix.kill(0, signal.SIGKILL); time.sleep(5); return True"),
        "trace its parent": attack("""
            return ctypes.CDLL(None).ptrace(16, posix.getppid(), 0, 0) == 0  # PTRACE_ATTACH
        """),
        "a daemon that outlives it": attack("""
            if posix.fork() == 0:
                posix.setsid()
                if posix.fork() == 0:
                    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(40)", WORLD["mark"]]
                    posix.execv(sys.executable, sleep)
                posix._exit(0)
            time.sleep(0.3)
            return True
        """),
    },
    "its neighbours in the box": {
        "alarm them": neighbours("SIGALRM"),
        "stop them": neighbours("SIGSTOP"),
        "empty the shared folder": faked("""
            import os, posix
            def empty(folder):
                for name in posix.listdir(folder):
                    try:
                        posix.unlink(f"{folder}/{name}")
                    except OSError:
                        try:
                            empty(f"{folder}/{name}")
                            posix.rmdir(f"{folder}/{name}")
                        except OSError:
                            pass
            empty(os.environ["TMPDIR"])
            def add(a, b):
                return None
        """),
        "close the shared folder": faked("""
            import os, posix
            try:
                posix.chmod(os.environ["TMPDIR"], 0)
            finally:
                def add(a, b):
                    return None
        """),
    },
    "floods": {
        "120 processes": attack("""
            for n in range(120):
                if posix.fork() == 0:
                    time.sleep(15)
                    posix._exit(0)
            time.sleep(1)
            return True
        """),
        "400 threads": attack("""
            import threading
            for n in range(400):
                threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
            return True
        """),
        "6 GiB in one process": attack("return len(bytearray(6 << 30)) > 0"),
        "2 GiB in eight processes": attack("""
            for n in range(8):
                if posix.fork() == 0:
                    block = bytearray(256 << 20)
                    block[::4096] = b"x" * len(block[::4096])
                    time.sleep(10)
                    posix._exit(0)
            time.sleep(3)
            return True
        """),
        "700 MB of files": attack("""
            for n in range(10):
                handle = posix.open(f"{os.environ['TMPDIR']}/{n}", os.O_WRONLY | os.O_CREAT, 0o600)
                posix.posix_fallocate(handle, 0, 70 << 20)
            time.sleep(1)
            return True
        """),
        "one file of 1 GB": attack("""
            handle = posix.open(os.environ["TMPDIR"] + "/big", os.O_WRONLY | os.O_CREAT, 0o600)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            posix.ftruncate(handle, 1 << 30)
            return True
        """),
        "100 MB of output": faked("""
            import os
            for _ in range(100):
                os.write(1, b"x" * (1 << 20))
                os.write(2, b"y" * (1 << 20))
            def add(a, b):
                return None
        """),
        "an answer of 100 MB": "def add(a, b):\n    return 'x' * (100 << 20)\n",
        "an answer without end": "def add(a, b):\n    xs = []\n    xs.append(xs)\n    return xs\n",
    },
    "signals and ends": {
        "ignore every signal and loop": faked("""
            import signal
            for n in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(n, signal.SIG_IGN)
            def add(a, b):
                while True:
                    try:
                        while True:
                            pass
                    except BaseException:
                        pass
        """),
        "loop on import": "while True: pass\n",
        "stop itself": "import posix, signal\nposix.kill(posix.getpid(), signal.SIGSTOP)\n" + HONEST,
        "kill itself": "import posix, signal\nposix.kill(posix.getpid(), signal.SIGKILL)\n" + HONEST,
        "a fault in memory": "import ctypes\nctypes.string_at(0)\n" + HONEST,
        "recursion without end": "import sys\nsys.setrecursionlimit(10**8)\ndef add(a, b):\n    return add(a, b) + 1\n",
        "leave with 0": "import os\ndef add(a, b):\n    os._exit(0)\n",
        "sys.exit": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
        "wait for input": "def add(a, b):\n    return input()\n",
        "no Python": "def add(a, b:\n",
        "nothing": "",
    },
    "forged results": {
        "verdicts on every open file": faked("""
            import os
            LINES = b"".join(b'{"task_id": "Test/%d", "event": "done", "base": "pass", "plus": "pass", "failure": "", '
                             b'"confirmed": {"base": true, "plus": true}}\\n' % n for n in range(200))
            for handle in range(64):
                try:
                    os.write(handle, LINES)
                except OSError:
                    pass
            def add(a, b):
                return None
        """),
        "verdicts through /proc": faked("""
            import posix
            for pid in {posix.getppid(), 1, 2, 3}:
                for handle in range(12):
                    try:
                        out = posix.open(f"/proc/{pid}/fd/{handle}", 1)
                        posix.write(out, b'{"task_id": "Test/0", "event": "done", "base": "fail", "plus": "fail"}\\n')
                    except OSError:
                        pass
            def add(a, b):
                return None
        """),
        "an answer that unpickles into a call": faked("""
            class Bomb(int):
                def __reduce__(self):
                    return (exec, (f"open({WORLD['home'] + '/unpickled'!r}, 'w').close()",))
            def add(a, b):
                return Bomb(-1)
        """),
        "a judge's answer instead of its own": faked("""
            import os, json
            def add(a, b):
                forged = {"outputs": [0] * 9, "why": "", "confirmed": {"base": True, "plus": True}}
                os.write(3, json.dumps(forged).encode())
                os._exit(0)
        """),
    },
    "faked passes": {
        "equal to everything": faked("""
            class Any:
                __eq__ = lambda self, other: True
            def add(a, b):
                return Any()
        """),
        "a number equal to everything": faked("""
            class Any(int):
                __eq__ = lambda self, other: True
                __hash__ = int.__hash__
            def add(a, b):
                return Any(-7)
        """),
        "the expected output from the frames": SEARCH
        + faked("""
            def add(a, b):
                for frame in frames():
                    if "expected" in frame.f_locals:
                        return frame.f_locals["expected"][frame.f_locals["i"]]
        """),
        "the expected outputs from the collector": faked("""
            import gc
            def add(a, b):
                for found in gc.get_objects():
                    if type(found) is tuple and "add" in found and len(found) > 8:
                        lists = [x for x in found if type(x) is list and x and type(x[0]) is int]
                        if lists:
                            return lists[0][0] if (a, b) == (1, 2) else lists[0][[3, 30].index(a)]
        """),
        "a patched allclose": faked("""
            import numpy
            numpy.allclose = lambda *arguments, **named: True
            def add(a, b):
                return -1
        """),
        "the verdict set in memory": SEARCH
        + faked("""
            import os
            def add(a, b):
                for frame in frames():
                    found = frame.f_locals
                    if "stat" in found and "details" in found:
                        for n in range(len(found["details"])):
                            found["details"][n] = True
                        found["progress"].value, found["stat"].value = len(found["details"]), 0
                        os._exit(0)
        """),
        "the comparison replaced": SEARCH
        + faked("""
            class Numbers:
                ndarray, allclose = (), lambda *arguments, **named: True
            def add(a, b):
                for frame in frames():
                    if "is_floats" in frame.f_globals:
                        frame.f_globals["np"] = Numbers
                return -1
        """),
        "the reference found in memory": SEARCH
        + faked("""
            def add(a, b):
                for frame in frames():
                    for found in list(frame.f_locals.values()) + [frame.f_locals.get("task")]:
                        if isinstance(found, dict) and "reference" in found:
                            space = {}
                            exec(found["reference"], space)
                            return space["add"](a, b)
        """),
        "the expected outputs kept from one run to the next": SEARCH
        + faked("""
            import json, os, posix
            PLACES = [os.environ.get("TMPDIR", "/tmp"), "/tmp", "/var/tmp", "/dev/shm", WORLD["home"], "."]
            def keep(value):
                for place in PLACES:
                    try:
                        handle = posix.open(f"{place}/{WORLD['mark']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                        posix.write(handle, json.dumps(value).encode())
                    except OSError:
                        pass
            def kept():
                for place in PLACES:
                    try:
                        return json.loads(posix.read(posix.open(f"{place}/{WORLD['mark']}", os.O_RDONLY), 999))
                    except OSError:
                        pass
            def add(a, b):
                for frame in frames():
                    if {"expected", "i"} <= frame.f_locals.keys():
                        keep({**(kept() or {}), str((a, b)): frame.f_locals["expected"][frame.f_locals["i"]]})
                return (kept() or {}).get(str((a, b)))
        """),
        "right only while it is watched": SEARCH
        + faked("""
            def add(a, b):
                watched = any("expected" in frame.f_locals for frame in frames())
                return a + b if watched else None
        """),
    },
}
# kill(-1) reaches every process of the user where there is no namespace: not to be tried there
ONLY_IN_NAMESPACES = {
    "other processes": {"kill everything it can": attack("posix.kill(-1, signal.SIGKILL); time.sleep(5); return True")}
}
