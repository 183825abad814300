"""The embedded mini profile: two instruction sets, a held-out benchmark and a base model, all our own, all offline."""

from codeact_lib.artifacts import MINI_BASE_DIR
from codeact_lib.extensions import on_first_use
from codeact_lib.mini.benchmark import BENCHMARKS, build_benchmark
from codeact_lib.mini.corpus import CORPORA, build_corpus

# Who asks for a data set shall not wait seconds for torch and transformers.
_, __getattr__ = on_first_use(__name__, {"base_model": ("build_base_model",)})
