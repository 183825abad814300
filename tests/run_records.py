"""Records of runs as 05_eval writes them, made up: what tests of tables and figures read."""

import json
import random

from codeact_lib.tables import load_reported

REPORTED = load_reported()

ENVIRONMENT = {"python": "3.11.2", "packages": {}, "cpu": "a CPU", "cores": 2, "gpu": None, "ram_gib": 8.0}
DATASETS = {"mini-evol": "EVOL-Instruct (mini)", "mini-oss": "OSS-Instruct (mini)"}


def benchmark(kind, rate, rng, n=160):
    verdicts = {}
    for i in range(n):
        base = rng.random() < rate
        plus = base and rng.random() < 0.9
        verdicts[f"{kind}/{i}"] = {"base": "pass" if base else "fail", "plus": "pass" if plus else "fail"}
    counts = {side: {"k": sum(v[side] == "pass" for v in verdicts.values()), "n": n} for side in ("base", "plus")}
    judged = {"version": "v1", "sha256": "0" * 64, "protocol": "codeact", "isolation": "limits"}
    seconds = {"generate": 8.0, "judge": 5.5}
    return {"kind": kind, "n": n, **counts, "verdicts": verdicts, **judged, "seconds": seconds}


def record(dataset, policy=None, ratio=None, strategy=None, rate=0.1, seconds=0.0, memory=0, n_train=None, **changes):
    rng = random.Random(f"{dataset} {policy}")
    train = {
        **{"seconds": seconds, "optimizer_steps": 10, "supervised_tokens": 1000, "padding_rate": 0.3},
        **{"peak_memory_bytes": memory, "peak_memory_kind": "rss_growth", "final_loss": 0.5},
    }
    result = {
        "run_id": f"mini-base__{dataset}__{policy}" if dataset else "mini-base__base",
        "profile": "mini",
        "model": {"name": "mini-base", "label": "mini-base", "size": "2M", "revision": None, "reported_as": None},
        "dataset": dataset,
        "dataset_label": DATASETS.get(dataset),
        "reported_as": dataset and DATASETS[dataset].removesuffix(" (mini)"),
        **{"policy": policy, "ratio": ratio, "strategy": strategy, "seed": 0, "n_train": n_train, "n_total": 2400},
        "train": train if dataset else None,
        "selection_cost": {"embedding_seconds": 3.0, "ifd_seconds": 147.0} if dataset else None,
        "benchmarks": {"mini-humaneval": benchmark("humaneval", rate, rng), "mini-mbpp": benchmark("mbpp", rate, rng)},
        "provenance": {"environment": ENVIRONMENT, "keys": {"05_eval": "ab" * 32}, "seed": 0},
    }
    return result | changes


def mini_metrics():
    records = [record(None)]
    for dataset in DATASETS:
        records += [
            record(dataset, "full", 1.0, "dynamic", 0.6, 112.3, 512_000_000, 2400),
            record(dataset, "cdas", 0.4, "dynamic_pack", 0.5, 39.2, 320_500_000, 957),
            record(dataset, "random", 0.4, "dynamic_pack", 0.45, 38.0, 318_000_000, 960),
        ]
    return records


METRICS = mini_metrics()


# The paper's numbers


def second_seed(records):
    """The same runs with another seed, other times and the verdicts of a tenth of the tasks turned."""
    again = json.loads(json.dumps(records))
    for record in again:
        record |= {"seed": 1, "run_id": record["run_id"] + "__seed-1"}
        record["train"]["seconds"] *= 0.8
        for judged in record["benchmarks"].values():
            for task in list(judged["verdicts"])[::10]:
                passed = judged["verdicts"][task]["plus"] == "pass"
                judged["verdicts"][task] = dict.fromkeys(("base", "plus"), "fail" if passed else "pass")
            for side in ("base", "plus"):
                judged[side]["k"] = sum(verdict[side] == "pass" for verdict in judged["verdicts"].values())
    return again


SEEDS = METRICS + second_seed(METRICS[1:])


def links(table):
    """The runs of each row of a table, None for a reported one."""
    rows = (row for _, rows in table.by_block() for row in rows)
    return [next((cell.run for cell in row if cell.run), None) for row in rows]
