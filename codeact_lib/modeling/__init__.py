"""Stages 02, 04, 05: base models, attention for packed rows, and a loss at supervised positions only."""

from codeact_lib.modeling.load import compute_device, load_base_model, load_tokenizer
from codeact_lib.modeling.loss import supervised_loss, use_supervised_loss

__all__ = ["compute_device", "load_base_model", "load_tokenizer", "supervised_loss", "use_supervised_loss"]
