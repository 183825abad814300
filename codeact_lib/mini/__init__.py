"""The embedded mini profile: two instruction sets, a held-out benchmark and a base model, all our own, all offline."""

from importlib import import_module
from typing import Any

from codeact_lib.artifacts import MINI_BASE_DIR
from codeact_lib.mini.benchmark import BENCHMARKS, build_benchmark
from codeact_lib.mini.corpus import CORPORA, build_corpus

__all__ = ["BENCHMARKS", "CORPORA", "MINI_BASE_DIR", "build_base_model", "build_benchmark", "build_corpus"]


def __getattr__(name: str) -> Any:
    # Imported on first use: who asks for a data set shall not wait seconds for torch and transformers.
    if name == "build_base_model":
        return import_module("codeact_lib.mini.base_model").build_base_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
