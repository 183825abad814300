"""Stage 02: Instruction-Following Difficulty, from summed losses with and without the instruction."""

from codeact_lib.ifd.launch import score_rows
from codeact_lib.ifd.resume import scoring_seconds
from codeact_lib.ifd.score import PRESETS, ifd_from_nll, score_ifd, scorer_agreement

__all__ = ["PRESETS", "ifd_from_nll", "score_ifd", "score_rows", "scorer_agreement", "scoring_seconds"]
