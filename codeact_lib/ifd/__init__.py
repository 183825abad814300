"""Stage 02: Instruction-Following Difficulty, from summed losses with and without the instruction."""

from codeact_lib.ifd.score import ifd_from_nll, score_ifd, scorer_agreement

__all__ = ["ifd_from_nll", "score_ifd", "scorer_agreement"]
