"""Where the numbers come from: the facts of each run, and what all runs of a report share."""

from __future__ import annotations

from codeact_lib.figures.style import number
from codeact_lib.tables.results import arm_label, benchmark_stamp, by_arm, hardware, setting


def run_groups(metrics: list[dict]) -> list[dict]:
    """The runs of the report by arm: ``{"arm", "runs": [run_facts, ...]}``, the seeds of an arm together."""
    return [
        {"arm": f"{setting(runs[0])}: {arm_label(runs[0])}", "runs": [run_facts(run) for run in runs]}
        for runs in by_arm(metrics)
    ]


def run_facts(record: dict) -> dict:
    """What the report says of one run: enough to find it again and to see that nothing was altered."""
    train, model = record["train"] or {}, record["model"]
    facts = {
        "arm": arm_label(record),
        "model": f"{model['label']} ({model['size']}), {model.get('revision') or 'no revision'}",
    }
    if record["dataset"]:
        facts["data"] = f"{record['dataset_label']}: {record['n_train']:,} of {record['n_total']:,} rows"
    facts["seed"] = record["seed"]
    if train:
        facts["training"] = (
            f"{number(train['seconds'])} s, {train['optimizer_steps']} optimizer steps, "
            f"{train['supervised_tokens']:,} supervised tokens, {train['padding_rate']:.1%} padding, "
            f"final loss {train['final_loss']:.3f}"
        )
        facts["peak memory"] = f"{train['peak_memory_bytes'] / 1e6:,.0f} MB ({train['peak_memory_kind']})"
    facts["benchmarks"] = benchmark_stamp(record)
    facts["solved"] = "; ".join(_solved(name, judged) for name, judged in record["benchmarks"].items())
    facts["judged"] = "; ".join(
        f"{name}: {b.get('protocol')}, isolation {b.get('isolation')}" for name, b in record["benchmarks"].items()
    )
    facts["hardware"] = hardware(record)
    facts["stage keys"] = ", ".join(
        f"{stage} {key[:12]}" for stage, key in record["provenance"].get("keys", {}).items()
    )
    facts["metrics file, sha256"] = record.get("metrics_sha256", "-")
    return {"run_id": record["run_id"], "facts": facts}


def _solved(name: str, judged: dict) -> str:
    base, plus = (f"{judged[side]['k']}/{judged[side]['n']}" for side in ("base", "plus"))
    return f"{name} {base} base, {plus} plus"


def provenance(profile, metrics: list[dict]) -> dict[str, str]:
    """What all runs of a report share: profile, seeds, software, hardware, benchmarks. Dates are in the manifests."""
    environments = [record["provenance"]["environment"] for record in metrics]
    packages = {f"{name} {version}" for facts in environments for name, version in facts["packages"].items()}
    benchmarks = [item for record in metrics for item in record["benchmarks"].items()]
    judged = {f"{name} {b['version']}, {b['n']} tasks: {b['sha256'][:16]}" for name, b in benchmarks}
    return {
        "profile": f"{profile.name}: {profile.description} (preset {profile.preset})",
        "seeds": ", ".join(map(str, profile.seeds)),
        "hardware": "; ".join(dict.fromkeys(hardware(record) for record in metrics)) or "-",
        "software": ", ".join([*sorted({f"python {e['python']}" for e in environments}), *sorted(packages)]),
        "benchmarks, sha256": "; ".join(sorted(judged)),
    }
