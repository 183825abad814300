"""Contenders measured side by side: the same work done in several ways, each time in a fresh process.

A contender is a function `prepare(**arguments)` that sets everything up and returns a function without arguments, the
work. Only the work is timed, and its peak memory counts from the resting process that has everything set up. Rounds
are interleaved (a, b, a, b, ...), so that a machine that gets slower in the middle slows all contenders alike.

    rows = contest({"naive": ("bench.ifd:naive", {...}), "ours": ("bench.ifd:ours", {...})})
    write_bench("ifd", compare(rows, baseline="naive"), about={"model": ...})
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from codeact_lib.artifacts import atomic_write, project_root, write_json
from codeact_lib.errors import CodeActError
from codeact_lib.measure import PeakMemory, environment_facts
from codeact_lib.processes import child_environment

Work = Callable[[], dict[str, Any]]  # what is timed; returns facts for the table
Say = Callable[[str], None]


def contest(
    contenders: Mapping[str, tuple[str, dict[str, Any]]], *, repeats: int = 3, timeout: float = 3600, say: Say = print
) -> pd.DataFrame:
    """Run every contender `repeats` times, interleaved; one line a run.

    `contenders` maps a name to (`"module:function"`, arguments as plain JSON values). Returns a frame with `contender`,
    `round`, `seconds`, `peak_memory_bytes`, `peak_memory_kind` and whatever facts (a dict) the work returned. A
    contender that fails or takes more than `timeout` seconds raises CodeActError with the last line it wrote.
    """
    rows = []
    for number in range(1, repeats + 1):
        for name, (function, arguments) in contenders.items():
            row = {"contender": name, "round": number, **_run_once(name, function, arguments, timeout)}
            memory = row["peak_memory_bytes"] / 1e6
            say(f"round {number}/{repeats}  {name:<28} {row['seconds']:9.3f} s  {memory:9.1f} MB")
            rows.append(row)
    return pd.DataFrame(rows)


def _run_once(name: str, function: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        task = json.dumps({"function": function, "arguments": arguments, "answer": str(answer)})
        try:
            child = subprocess.run(
                [sys.executable, "-m", "bench.harness", task],
                env=child_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise CodeActError(f"{name} took more than {timeout:.0f} s: give it less work") from error
        if child.returncode or not answer.exists():
            last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            raise CodeActError(f"{name} failed: {last}")
        return json.loads(answer.read_text())


def _child(task: dict[str, Any]) -> None:
    """Set up, work, measure, and leave the answer in a file (anything may print)."""
    module, function = task["function"].split(":")
    work = getattr(importlib.import_module(module), function)(**task["arguments"])
    with PeakMemory() as memory:
        started = time.perf_counter()
        facts = work()
        seconds = time.perf_counter() - started
    measured = {"seconds": seconds, "peak_memory_bytes": memory.bytes(), "peak_memory_kind": memory.kind}
    write_json(Path(task["answer"]), {**measured, **(facts or {})})


def compare(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One line a contender: median, smallest and largest seconds, median peak memory, and ratios to `baseline`.

    `speedup` is how many times faster than the baseline (median over median), `memory_ratio` its peak memory divided by
    the baseline's. Facts that are numbers are taken as medians, others from the last round.
    """
    measured = ["seconds", "peak_memory_bytes"]
    lines = []
    for name, group in rows.groupby("contender", sort=False):
        line = {"contender": name, "rounds": len(group), "seconds": group["seconds"].median()}
        line |= {"seconds_min": group["seconds"].min(), "seconds_max": group["seconds"].max()}
        line["peak_memory_bytes"] = group["peak_memory_bytes"].median()
        for fact in group.columns.difference(["contender", "round", *measured], sort=False):
            numeric = pd.api.types.is_numeric_dtype(group[fact])
            line[fact] = group[fact].median() if numeric else group[fact].iloc[-1]
        lines.append(line)
    table = pd.DataFrame(lines)
    base = table.set_index("contender").loc[baseline]
    table["speedup"] = base["seconds"] / table["seconds"]
    table["memory_ratio"] = table["peak_memory_bytes"] / base["peak_memory_bytes"]
    return table


def write_bench(name: str, table: pd.DataFrame, about: dict[str, Any], folder: str | Path | None = None) -> Path:
    """Write `<name>.json` (table, `about`, versions, hardware), `<name>.md` and `<name>.svg`; return the first's path.

    `table` is what `compare` returns; columns that are left out of it are left out of the page too. The folder is
    results/bench unless another is given. Without matplotlib, as on a bare GPU machine, there is no figure.
    """
    folder = Path(folder) if folder else project_root() / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"about": about, "environment": environment_facts(), "rows": json.loads(table.to_json(orient="records"))}
    drawn = find_spec("matplotlib") is not None
    write_json(folder / f"{name}.json", facts)
    with atomic_write(folder / f"{name}.md") as file:
        file.write(bench_page(name, facts, picture=drawn))
    if drawn:
        from bench.drawing import bench_bars
        from codeact_lib.figures import save_figure

        save_figure(bench_bars(table, title=f"bench {name}, {_place(facts)}"), folder / name, formats=("svg",))
    return folder / f"{name}.json"


def bench_page(name: str, facts: dict[str, Any], picture: bool = True) -> str:
    """The Markdown page of a bench from the facts in its JSON: where it was measured, what all share, the table."""
    table = pd.DataFrame(facts["rows"]).dropna(axis="columns", how="all")
    shared = [key for key in table.columns.drop("contender") if len(table) > 1 and table[key].nunique() == 1]
    facts_of_all = {**facts["about"], **table[shared].iloc[0].to_dict()}
    lines = "".join(f"- {': '.join(_shown(key, value))}\n" for key, value in facts_of_all.items())
    columns = [[_shown(key, value) for value in table[key]] for key in table.columns.drop(shared)]
    shown = pd.DataFrame({cells[0][0]: [text for _, text in cells] for cells in columns})
    rows = shown.to_markdown(index=False, disable_numparse=True, colalign=["left"] + ["right"] * (len(columns) - 1))
    figure = f"![Time and memory]({name}.svg)\n\n" if picture else ""
    return f"# bench {name}\n\nMeasured on {_place(facts)}.\n\n{figure}{lines}\n{rows}\n"


def _place(facts: dict[str, Any]) -> str:
    environment = facts["environment"]
    return environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"


def _shown(key: str, value: Any) -> tuple[str, str]:
    """Heading and text of a value for a reader: bytes in MB, whole numbers whole, three digits of others."""
    if key.endswith("_bytes"):
        key = f"{key.removesuffix('_bytes')}_mb"
        value = value / 1e6
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        text = str(value)
    elif float(value).is_integer() or abs(float(value)) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return key.replace("_", " "), text


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
