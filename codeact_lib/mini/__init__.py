"""The embedded mini profile: two instruction sets, a held-out benchmark and a base model, all our own, all offline."""

from pathlib import Path
from typing import Any

from codeact_lib.artifacts import MINI_BASE_DIR
from codeact_lib.mini.benchmark import BENCHMARKS, build_benchmark
from codeact_lib.mini.corpus import CORPORA, build_corpus

__all__ = ["BENCHMARKS", "CORPORA", "base_model_dir", "build_base_model", "build_benchmark", "build_corpus"]


def base_model_dir() -> Path:
    """The folder of the base model that ships with the package (safetensors, tokenizer, card)."""
    return MINI_BASE_DIR


def build_base_model(output_dir: str | Path, **settings: Any) -> dict[str, Any]:
    """Train the mini base model from its recipe; see `codeact_lib.mini.base_model.build_base_model`."""
    # not at the top: who asks for a data set shall not wait for torch and transformers
    from codeact_lib.mini.base_model import build_base_model as build

    return build(output_dir, **settings)
