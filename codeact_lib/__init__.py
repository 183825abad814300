"""CodeACT, reproduced: choose 40% of an instruction set by complexity and diversity, fine-tune on it with Dynamic Pack,
score with EvalPlus (arXiv 2408.02193).

The public names below are imported on first use, so that ``import codeact_lib`` and ``codeact --help`` are instant:

    from codeact_lib import cdas_sample, DynamicPackCollator, load_profile
"""

from codeact_lib.extensions import on_first_use

__version__ = "0.1.0"

EXPORTS = {
    "config": ("load_profile", "Profile", "Run"),
    "data": ("load_instructions", "ValidationReport", "find_leaks", "leak_table", "drop_leaks"),
    "prompts": ("PromptTemplate", "TEMPLATES", "tokenize_example"),
    "embedding": ("embed_instructions", "cluster_embeddings", "silhouette_by_k", "cluster_stability"),
    "ifd": ("score_ifd", "ifd_from_nll"),
    "sampling": ("cdas_sample", "random_sample", "longest_sample", "ifd_sample", "stratified_sample", "band_sample")
    + ("compare_policies",),
    "select": ("select_rows",),
    "packing": ("plan_rows", "PaddingStrategy", "DynamicPackCollator", "padding_report"),
    "modeling": ("load_base_model", "supervised_loss", "use_supervised_loss"),
    "training": ("fine_tune", "TrainReport"),
    "generation": ("generate_solutions",),
    "evaluation": ("evaluate_solutions", "PassAtOne"),
    "sandbox": ("run_isolated", "probe_isolation"),
    "statistics": ("pass_interval", "paired_test"),
    "tables": ("rq1_table", "rq2_table", "write_table"),
    "figures": ("save_figure",),
    "artifacts": ("RunPaths", "StageManifest"),
    "pipeline": ("open_stage",),
    "mini": ("build_corpus", "build_benchmark", "build_base_model"),
}
__all__, __getattr__ = on_first_use(__name__, EXPORTS)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
