"""`codeact select`: CDAS on a file of one's own, by the same functions as notebooks 01 to 03."""

from codeact_lib.select.settings import Selection, SelectSettings
from codeact_lib.select.steps import select_rows

__all__ = ["SelectSettings", "Selection", "select_rows"]
