"""Stage 02: Instruction-Following Difficulty, from summed losses with and without the instruction."""

from codeact_lib.ifd.score import PRESETS, ifd_from_nll, score_ifd, scorer_agreement, scoring_seconds

__all__ = [
    "PRESETS",
    "ifd_from_nll",
    "score_ifd",
    "scorer_agreement",
    "scoring_seconds",
]
