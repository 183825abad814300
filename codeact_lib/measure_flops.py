"""Model FLOPs utilisation: which share of a device's peak went into work that the model needs.

Counted as usual (PaLM, arXiv 2204.02311, appendix B): real tokens only, so padding counts as nothing, and nothing for
what gradient checkpointing computes twice.
"""

import torch

# Dense half-precision TFLOP/s by the makers' data sheets; the first name found in the device's own is taken.
PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "V100": 125,
    "T4": 65,
    "RTX 4090": 165,
}


def model_flops(model, tokens: int, pairs: int) -> float:
    """Floating-point operations of forward and backward over `tokens` tokens in samples of squared length `pairs`.

    Two per weight and token in the forward pass, and 4 d n^2 / 2 per layer for causal attention over n tokens (width
    d). The backward pass costs twice that; half of it where the weights stand still, as under an adapter. The input
    embedding is a look-up and counts nothing, unless the head shares it.
    """
    config = model.config
    head = model.get_output_embeddings()
    weights = _size(model) - _size(model.get_input_embeddings())
    if head is not None and head.weight is model.get_input_embeddings().weight:
        weights += _size(head)
    forward = 2 * weights * tokens + 2 * config.num_hidden_layers * config.hidden_size * pairs
    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    return float(forward * (2 if frozen else 3))


def _size(module) -> int:
    """Weights of a module; a 4-bit layer packs two into each number it holds."""
    packed = sum(p.numel() for p in module.parameters() if hasattr(p, "quant_state"))
    return sum(p.numel() for p in module.parameters()) + packed


def peak_flops_per_second(half_precision: bool = True) -> float | None:
    """The peak of the current GPU, or None without one, for an unknown one and in single precision."""
    if not torch.cuda.is_available() or not half_precision:
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(name: str) -> float | None:
    """FLOP/s of a GPU by its name, None when it is not in the table."""
    tflops = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    return None if tflops is None else tflops * 1e12
