"""`codeact select`: CDAS on a file of one's own. Calls data, embedding, ifd and sampling."""

from codeact_lib.select.steps import select_rows

__all__ = ["select_rows"]
