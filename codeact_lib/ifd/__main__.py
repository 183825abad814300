"""`python -m codeact_lib.ifd`: score an instruction file, see `launch.score_file`."""

import sys

import typer

from codeact_lib.errors import CodeActError
from codeact_lib.ifd.launch import score_file

if __name__ == "__main__":
    try:
        typer.run(score_file)
    except CodeActError as error:
        sys.exit(f"error: {error}")
