"""Write the functions of the Python standard library that the mini profile uses, with the licences they stand under.

    python3.11 tools/mine_stdlib.py        # writes codeact_lib/mini/stdlib_texts

The texts are stored, not mined at run time, so that every Python makes the same rows and the same tables
(tests/mini/test_mini.py holds their hash). Run this only to take another release on purpose: mini's data, and with it
every number of results/mini, changes then.
"""

import ast
import hashlib
import inspect
import json
import platform
import re
import sysconfig
from pathlib import Path

OUT = Path(__file__).parent.parent / "codeact_lib/mini/stdlib_texts"
MAX_LINES, MAX_CHARACTERS = 14, 520

# Pure-Python modules with short, documented functions.
MODULES = """
_collections_abc abc argparse ast base64 bisect bdb calendar cmd code codecs collections/__init__ colorsys configparser
contextlib copy csv dataclasses datetime difflib dis doctest email/_parseaddr email/charset email/header
email/headerregistry email/message email/utils enum filecmp fileinput fnmatch fractions ftplib functools genericpath
getopt gettext glob gzip heapq hmac html/__init__ html/parser http/client http/cookiejar http/cookies imaplib
importlib/_bootstrap importlib/abc inspect ipaddress json/__init__ json/decoder json/encoder keyword linecache locale
logging/__init__ logging/handlers mailbox mimetypes modulefinder netrc nntplib ntpath numbers operator optparse pathlib
pdb pickle pkgutil platform plistlib poplib posixpath pprint profile pstats pydoc queue quopri random reprlib sched
secrets selectors shelve shlex shutil smtplib socket socketserver statistics string symtable sysconfig tarfile tempfile
textwrap threading timeit tokenize trace traceback types typing urllib/parse urllib/request uuid warnings wave weakref
xdrlib zipfile zipapp asyncio/base_events asyncio/locks asyncio/queues asyncio/streams asyncio/tasks
concurrent/futures/_base multiprocessing/connection multiprocessing/managers multiprocessing/pool unittest/case
unittest/loader unittest/mock unittest/result unittest/suite xml/dom/minidom xml/etree/ElementTree xmlrpc/client
""".split()


def is_instruction_module(module: str) -> bool:
    """Half of the modules serve the instruction set, the other half pre-training: they share no function."""
    return hashlib.sha256(module.encode()).digest()[0] % 2 == 0


def short_functions(source: str) -> list[tuple[str, str, str]]:
    """(name, first docstring paragraph or "", source without docstring and indentation) of each short function."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        paragraph = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").split("\n\n")[0]
        doc = " ".join(paragraph.split())
        body = node.body[1:] if doc else node.body
        if not body or node.end_lineno - body[0].lineno >= MAX_LINES or len(doc) > 200:
            continue
        kept = lines[node.lineno - 1 : node.body[0].lineno - 1] + lines[body[0].lineno - 1 : node.end_lineno]
        text = "\n".join(without_indentation(line, node.col_offset) for line in kept) + "\n"
        if len(text) <= MAX_CHARACTERS and text.isascii() and parses(text):
            found.append((node.name, doc, text))
    return found


def without_indentation(line: str, columns: int) -> str:
    return line if line[:columns].strip() else line[columns:]


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:  # a comment or a continuation was cut: leave the function out
        return False
    return True


def notice(module: str, source: str) -> str:
    """The copyright and permission texts of a module that has its own, "" for one that has none."""
    comments = re.findall(r"(?:^#.*\n)+", source, re.M)
    docstring = ast.get_docstring(ast.parse(source)) or ""
    constants = re.findall(r'^__copyright__ = """\n(.*?)"""', source, re.M | re.S)
    own = [
        text
        for text in [*comments, *docstring.split("\n\n"), *constants]
        if re.search(r"copyright.*(\d{4}|cnri|inc\.)", text, re.I)
    ]
    return f"--- {module}.py\n\n" + "\n".join(text.rstrip() + "\n" for text in own) + "\n" if own else ""


def main() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    rows: dict[tuple[bool, str, str, str], str] = {}
    notices = ""
    for module in MODULES:
        source = (library / f"{module}.py").read_text(encoding="utf-8")
        for_instructions = is_instruction_module(module)
        for name, doc, code in short_functions(source):
            if for_instructions and len(doc) <= 20:
                continue  # without a description there is nothing to ask for
            rows.setdefault((for_instructions, name, doc, code), module)
        notices += notice(module, source)
    OUT.mkdir(exist_ok=True)
    with (OUT / "functions.jsonl").open("w", encoding="utf-8") as file:
        for (for_instructions, name, doc, code), module in rows.items():
            use = "instructions" if for_instructions else "pretraining"
            file.write(json.dumps({"use": use, "module": module, "name": name, "doc": doc, "code": code}) + "\n")
    (OUT / "LICENSE.txt").write_text((library / "LICENSE.txt").read_text(encoding="utf-8"), encoding="utf-8")
    opening = f"""functions.jsonl holds short functions of the Python {platform.python_version()} standard library,
Copyright (c) Python Software Foundation; All Rights Reserved. LICENSE.txt is its licence (PSF-2.0). What was changed:
only the first paragraph of a docstring is kept, apart from the code, and indentation is taken off.

Modules with notices of their own:

"""
    (OUT / "NOTICES.txt").write_text(opening + notices, encoding="utf-8")


if __name__ == "__main__":
    main()
