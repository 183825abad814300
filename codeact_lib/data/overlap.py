"""Texts that hold much of another text: near duplicates inside a set, benchmark tasks inside a training set.

leaks = find_leaks(examples, load_benchmark("humaneval").tasks)     # which rows, which tasks, how much of them
leak_table({"humaneval": leaks}, {"all rows": ids, "chosen": chosen_ids})
clean = drop_leaks(examples, leaks)
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections import Counter, defaultdict

import numpy as np
import pandas as pd

WORDS_IN_A_GRAM = 10
NODES_IN_A_GRAM = 24  # of a syntax tree: about two statements; ten nodes are one, which many programs share
LEAK_COLUMNS = ["example_id", "task_id", "part", "share"]
_CODE_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


# ---------------------------------------------------------------------------------------------- near duplicates


class NearDuplicates:
    """Texts seen so far, and whether a new one is nearly one of them.

    Similarity is the Jaccard index of the sets of five successive tokens (words and single signs). MinHash with
    locality-sensitive hashing (datasketch) proposes candidates, tuned to miss few; each is then compared exactly, so
    that nothing under ``threshold`` is ever called a near duplicate. Memory: about 1.5 KB and 8 bytes a token per text.
    """

    def __init__(self, threshold, *, tokens_in_a_gram=5, num_perm=128):
        from datasketch import MinHash, MinHashLSH

        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], not {threshold}: 0.9 means nine tenths in common")
        self.threshold, self.n = threshold, tokens_in_a_gram
        self.empty = MinHash(num_perm=num_perm, hashfunc=int)
        # a candidate too many costs a comparison, a candidate too few a duplicate
        self.index = MinHashLSH(threshold=min(threshold, 0.99), num_perm=num_perm, weights=(0.1, 0.9))
        self.grams = {}

    def add(self, key, text):
        """``(key, similarity)`` of the most similar earlier text at or above the threshold, or ``None``.

        A text that has no such neighbour is remembered under ``key``; one that has is not, so chains of small changes
        end at their first member.
        """
        grams = _hashed_grams(re.findall(r"\w+|[^\w\s]", text.lower()), self.n)
        sketch = self.empty.copy()
        sketch.update_batch(grams & np.uint64(0xFFFFFFFF))
        found = [(self._similarity(grams, other), other) for other in sorted(self.index.query(sketch))]
        similarity, nearest = max(found, key=lambda pair: pair[0], default=(0.0, None))
        if similarity >= self.threshold:
            return nearest, similarity
        self.grams[key] = grams
        self.index.insert(key, sketch)
        return None

    def _similarity(self, grams, other):
        common = len(np.intersect1d(grams, self.grams[other], assume_unique=True))
        return common / (len(grams) + len(self.grams[other]) - common)


def _hashed_grams(tokens, n):
    """Sorted distinct uint64 hashes of the n-grams; a text of fewer tokens is one gram."""
    grams = {" ".join(tokens[i : i + n]) for i in range(max(len(tokens) - n + 1, 1))}
    digests = b"".join(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest() for gram in grams)
    return np.unique(np.frombuffer(digests, dtype="<u8"))


# ---------------------------------------------------------------------------------------------- leaks


def find_leaks(examples, benchmark_tasks, *, n=WORDS_IN_A_GRAM, threshold=0.5):
    """Training rows that contain, or nearly contain, a benchmark task.

    Two ways of looking, because a copy may change its words or its names:

    - texts as lower-case words (letters and digits): a row leaks a task when it holds at least ``threshold`` of the
      ``n``-word sequences of the task's prompt, or of its canonical solution;
    - Python as a syntax tree without names of its own, docstrings, annotations and imports: a row leaks a task when its
      code holds at least ``threshold`` of the sequences of 24 nodes of the task's solution.

    82 of HumanEval's 164 problems were found solvable straight from a public instruction set (ise-uiuc/magicoder, issue
    40), so this is worth a look.

    Args:
        examples: frame with ``example_id, instruction, response``.
        benchmark_tasks: dicts in EvalPlus's schema (``task_id, prompt, canonical_solution``).
        n: words in a sequence. A task text of fewer words, or a tree of fewer nodes, cannot be told from chance and is
            left out.
        threshold: share of a task's sequences that makes a leak, in (0, 1].

    Returns:
        Frame ``example_id, task_id, part, share`` (part: ``prompt``, ``canonical_solution`` or ``syntax tree``), worst
        first.
    """
    holders, sizes = _index_tasks(benchmark_tasks, n)
    leaks = []
    for row in examples.to_dict("records"):
        shared = Counter(task for gram in _row_grams(row, n) for task in holders.get(gram, ()))
        leaks += [(row["example_id"], *task, count / sizes[task]) for task, count in shared.items()]
    leaks = sorted((leak for leak in leaks if leak[-1] >= threshold), key=lambda leak: (-leak[-1], *leak[:-1]))
    return pd.DataFrame(leaks, columns=LEAK_COLUMNS)


def leak_table(leaks, subsets):
    """How many rows of each set hold tasks of each benchmark.

    Args:
        leaks: benchmark name -> what ``find_leaks`` gave for all rows.
        subsets: name of a set ("all rows", "chosen") -> its example_ids.

    Returns:
        Frame ``benchmark, set, rows, leaking_rows, share, tasks``; ``tasks`` counts the distinct tasks that are held.
    """
    lines = []
    for benchmark, found in leaks.items():
        for name, ids in subsets.items():
            inside = found[found["example_id"].isin(ids)]
            rows, leaking = len(ids), inside["example_id"].nunique()
            lines.append((benchmark, name, rows, leaking, leaking / max(rows, 1), inside["task_id"].nunique()))
    return pd.DataFrame(lines, columns=["benchmark", "set", "rows", "leaking_rows", "share", "tasks"])


def drop_leaks(examples, leaks):
    """``examples`` without the rows that ``leaks`` names, numbered anew."""
    return examples[~examples["example_id"].isin(leaks["example_id"])].reset_index(drop=True)


def _index_tasks(tasks, n):
    """gram -> the (task_id, part) that hold it; (task_id, part) -> its number of grams."""
    holders, sizes = defaultdict(list), {}
    for task in tasks:
        parts = {part: _word_grams(task[part], n) for part in ("prompt", "canonical_solution")}
        parts["syntax tree"] = _tree_grams(task["prompt"] + task["canonical_solution"])
        for part, grams in parts.items():
            sizes[task["task_id"], part] = len(grams)
            for gram in grams:
                holders[gram].append((task["task_id"], part))
    return holders, sizes


def _row_grams(row, n):
    """Word grams of both texts, and tree grams of every piece of code in them (marked, so that they never mix)."""
    grams = _word_grams(f"{row['instruction']}\n{row['response']}", n)
    for text in (row["instruction"], row["response"]):
        for code in _CODE_BLOCK.findall(text) or [text]:
            grams |= _tree_grams(code)
    return grams


def _word_grams(text, n):
    return _grams(re.findall(r"[a-z0-9]+", text.lower()), n)


def _tree_grams(code):
    """Grams of the nodes of a piece of Python in reading order; none where it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(code)
        own = _own_names(tree)
        return {("tree", *gram) for gram in _grams(list(_tokens(tree, own)), NODES_IN_A_GRAM)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()


def _grams(tokens, n):
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _own_names(tree):
    """Names that the code gives itself: functions, classes, parameters, and whatever it assigns to."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return own


_UNSEEN_FIELDS = ("annotation", "returns", "type_comment", "ctx", "decorator_list", "type_params")


def _tokens(node, own):
    """Node types in reading order, with the names and values that a copy cannot change without changing the program."""
    if isinstance(node, (ast.Import, ast.ImportFrom)) or _is_lone_text(node):
        return
    yield type(node).__name__
    if isinstance(node, ast.Name):
        yield "_" if node.id in own else node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant):
        yield repr(node.value)
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in _UNSEEN_FIELDS:
                yield from _tokens(child, own)


def _is_lone_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
