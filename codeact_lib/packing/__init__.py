"""Stage 04: which samples share a row (`plan`, pure Python), and the tensors of a batch (`collate`)."""

from codeact_lib.packing.collate import DynamicPackCollator, padding_report
from codeact_lib.packing.plan import PaddingStrategy, plan_rows

__all__ = ["DynamicPackCollator", "PaddingStrategy", "padding_report", "plan_rows"]
