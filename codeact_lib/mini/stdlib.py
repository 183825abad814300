"""Docstring/function pairs taken at run time from the installed Python standard library.

Nothing of the standard library is stored in this project. Pairs depend on the Python patch release: their hash is
part of the data-set manifest, so a table made from another release can be told apart.
"""

import ast
import hashlib
import inspect
import sysconfig
from functools import lru_cache
from pathlib import Path

# Pure-Python modules with short, documented functions; split by name so that pre-training and instruction sets share
# none.
MODULES = (
    "_collections_abc", "abc", "argparse", "ast", "base64", "bisect", "bdb", "calendar", "cmd",
    "code", "codecs", "collections/__init__",
    "colorsys", "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "difflib",
    "dis", "doctest", "email/_parseaddr",
    "email/charset", "email/header", "email/headerregistry", "email/message", "email/utils",
    "enum", "filecmp", "fileinput", "fnmatch",
    "fractions", "ftplib", "functools", "genericpath", "getopt", "gettext", "glob", "gzip",
    "heapq", "hmac", "html/__init__",
    "html/parser", "http/client", "http/cookiejar", "http/cookies", "imaplib",
    "importlib/_bootstrap", "importlib/abc", "inspect",
    "ipaddress", "json/__init__", "json/decoder", "json/encoder", "keyword", "linecache", "locale", "logging/__init__",
    "logging/handlers", "mailbox", "mimetypes", "modulefinder", "netrc", "nntplib", "ntpath",
    "numbers", "operator", "optparse", "pathlib",
    "pdb", "pickle", "pkgutil", "platform", "plistlib", "poplib", "posixpath", "pprint", "profile",
    "pstats", "pydoc", "queue",
    "quopri", "random", "reprlib", "sched", "secrets", "selectors", "shelve", "shlex", "shutil",
    "smtplib", "socket", "socketserver",
    "statistics", "string", "symtable", "sysconfig", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "tokenize", "trace",
    "traceback", "types", "typing", "urllib/parse", "urllib/request", "uuid", "warnings", "wave",
    "weakref", "xdrlib", "zipfile", "zipapp",
    "asyncio/base_events", "asyncio/locks", "asyncio/queues", "asyncio/streams", "asyncio/tasks",
    "concurrent/futures/_base",
    "multiprocessing/connection", "multiprocessing/managers", "multiprocessing/pool",
    "unittest/case", "unittest/loader", "unittest/mock",
    "unittest/result", "unittest/suite", "xml/dom/minidom", "xml/etree/ElementTree", "xmlrpc/client",
)  # fmt: skip


def is_instruction_module(module: str) -> bool:
    """Half of the modules serve the instruction set, the other half pre-training."""
    return hashlib.sha256(module.encode()).digest()[0] % 2 == 0


@lru_cache
def short_functions(
    for_instructions: bool, max_lines: int = 14, max_characters: int = 520
) -> tuple[tuple[str, str, str], ...]:
    """(name, first docstring paragraph or "", source without docstring) of short functions, in a stable order."""
    found = []
    for module in MODULES:
        if is_instruction_module(module) == for_instructions:
            path = Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py"
            if path.exists():  # a few modules leave the library between releases
                found += _functions_of(path.read_text(encoding="utf-8"), max_lines, max_characters)
    return tuple(dict.fromkeys(found))


def _functions_of(source: str, max_lines: int, max_characters: int) -> list[tuple[str, str, str]]:
    lines = source.splitlines()
    pairs = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        doc = " ".join(inspect.cleandoc(ast.get_docstring(node, clean=False) or "").split("\n\n")[0].split())
        body = node.body[1:] if doc else node.body
        if not body or (node.end_lineno or 0) - body[0].lineno >= max_lines or len(doc) > 200:
            continue
        code = _dedent(lines[node.lineno - 1 : node.body[0].lineno - 1], node.col_offset)
        code += _dedent(lines[body[0].lineno - 1 : node.end_lineno], node.col_offset)
        text = "\n".join(code) + "\n"
        if len(text) <= max_characters and text.isascii() and _parses(text):
            pairs.append((node.name, doc, text))
    return pairs


def _dedent(lines: list[str], columns: int) -> list[str]:
    return [line[columns:] if not line[:columns].strip() else line for line in lines]


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:  # a comment or a continuation was cut: leave the function out
        return False
    return True
