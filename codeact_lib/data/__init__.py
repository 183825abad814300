"""Stage 01: an instruction set from any file or hub set, checked row by row; duplicates and leaks."""

from codeact_lib.data import overlap
from codeact_lib.data.instructions import ValidationReport, load_instructions
from codeact_lib.data.overlap import drop_leaks, find_leaks, leak_table

__all__ = ["ValidationReport", "drop_leaks", "find_leaks", "leak_table", "load_instructions", "overlap"]
