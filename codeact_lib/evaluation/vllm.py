"""Greedy decoding by vLLM, where it is installed and asked for (`generation_engine: vllm`): many GPUs, long answers."""

# It is no dependency of this package, not even an optional one: its wheels bring a torch of their own.

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeact_lib.artifacts import read_json
from codeact_lib.errors import ModelError
from codeact_lib.modeling.load import adapter_base, recorded_tuning, resolve_path


@dataclass(frozen=True)
class VllmModel:
    """A loaded engine and, for an unmerged adapter, what puts it on top (`decoding.GreedyModel`)."""

    engine: Any  # `vllm.LLM`
    adapter: Any  # `vllm.lora.request.LoRARequest` or None
    # vLLM schedules its own batches: its text may differ from that of transformers within rounding, in any precision.
    stamp: dict[str, str]

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
        """See `decoding.GreedyModel`."""
        from vllm import SamplingParams

        rules = SamplingParams(temperature=0, max_tokens=max_new_tokens, stop=[*stop], include_stop_str_in_output=True)
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        answers = self.engine.generate(asked, rules, lora_request=self.adapter, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]


def load_vllm(path: Path | str, *, revision: str | None = None, dtype: str = "bfloat16") -> VllmModel:
    """Load a full model, or a LoRA or QLoRA adapter (a folder with adapter_config.json) on the base it was trained on.

    `path` is a folder or a hub id, `revision` that of a hub id, `dtype` of the weights. ModelError where vLLM is not
    installed.
    """
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        remedy = "`pip install vllm` on a machine with a GPU, or set generation_engine: transformers"
        raise ModelError(f"generation_engine is vllm, but vLLM is not installed here ({error}): {remedy}.") from error
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # a model that the caller has let go of would still hold its share of the GPU
    config = Path(path) / "adapter_config.json"
    options: dict[str, Any] = {"dtype": dtype}
    stamp = {"engine": "vllm", "dtype": dtype}
    if not config.exists():
        options |= {"model": resolve_path(path), "tokenizer_revision": revision, "revision": revision}
        return VllmModel(LLM(**options), None, stamp)
    base, base_revision = adapter_base(path)
    options |= {"model": resolve_path(base), "revision": base_revision, "tokenizer": str(path)}
    options |= {"enable_lora": True, "max_lora_rank": read_json(config)["r"]}
    if recorded_tuning(path) == "qlora":  # the base as it was trained on: vLLM packs it in NF4 with double quantisation
        options["quantization"] = "bitsandbytes"
    return VllmModel(LLM(**options), LoRARequest("adapter", 1, str(path)), stamp)
