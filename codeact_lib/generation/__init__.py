"""The old address of `codeact_lib.evaluation.generation`, kept for code that imports it from here."""

from codeact_lib.evaluation.generation import generate_solutions as generate_solutions
