"""Texts that hold much of another text: near duplicates inside a set, benchmark tasks inside a training set.

leaks = find_leaks(examples, load_benchmark("humaneval").tasks)     # which rows, which tasks, how much of them
leak_table({"humaneval": leaks}, {"all rows": ids, "chosen": chosen_ids})
clean = drop_leaks(examples, leaks)
"""

import ast
import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

TOKENS_IN_A_GRAM = 5  # for near duplicates
WORDS_IN_A_GRAM = 10  # for leaks
NODES_IN_A_GRAM = 24  # of a syntax tree: about two statements; ten nodes are one, which many programs share
LEAK_COLUMNS = ["example_id", "task_id", "part", "share"]
_CODE_BLOCK = re.compile(r"``[^\n`]*\n(.*?)(?:``|\Z)", re.DOTALL)


# ---- near duplicates -------------------------------------------------------------------------------------------------
class Neighbour(NamedTuple):
    """An earlier text: its key, and how similar it is (Jaccard index)."""

    key: Any
    similarity: float


class NearDuplicates:
    """Texts seen so far, and whether a new one is nearly one of them.

    Similarity is the Jaccard index of the sets of five successive tokens (words and single signs). MinHash with
    locality-sensitive hashing (datasketch) proposes candidates; each is then compared exactly, so that nothing under
    `threshold` is ever called a near duplicate. Memory: about 1.5 KB and 8 bytes a token per text.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], not {threshold}: 0.9 means nine tenths in common")
        self.threshold = threshold
        self.empty = MinHash(num_perm=128, hashfunc=int)
        # Tuned to miss few: a candidate too many costs a comparison, a candidate too few a duplicate.
        self.index = MinHashLSH(threshold=min(threshold, 0.99), num_perm=128, weights=(0.1, 0.9))
        self.grams: dict[Any, np.ndarray] = {}

    def add(self, key: Any, text: str) -> Neighbour | None:
        """The most similar earlier text at or above the threshold, or None.

        A text that has no such neighbour is remembered under `key`; one that has is not, so chains of small changes
        end at their first member.
        """
        grams = _hashed_grams(re.findall(r"\w+|[^\w\s]", text.lower()), TOKENS_IN_A_GRAM)
        sketch = self.empty.copy()
        sketch.update_batch(grams & np.uint64(0xFFFFFFFF))
        nearest = Neighbour(None, 0.0)
        for other in sorted(self.index.query(sketch)):
            common = len(np.intersect1d(grams, self.grams[other], assume_unique=True))
            similarity = common / (len(grams) + len(self.grams[other]) - common)
            if similarity > nearest.similarity:
                nearest = Neighbour(other, similarity)
        if nearest.similarity >= self.threshold:
            return nearest
        self.grams[key] = grams
        self.index.insert(key, sketch)
        return None


def _hashed_grams(tokens: list[str], n: int) -> np.ndarray:
    """Sorted distinct uint64 hashes of the n-grams; a text of fewer tokens is one gram."""
    grams = {" ".join(tokens[i : i + n]) for i in range(max(len(tokens) - n + 1, 1))}
    digests = b"".join(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest() for gram in grams)
    return np.unique(np.frombuffer(digests, dtype="<u8"))


# ---- leaks -----------------------------------------------------------------------------------------------------------
def find_leaks(
    examples: pd.DataFrame,
    benchmark_tasks: Iterable[Mapping[str, Any]],
    *,
    n: int = WORDS_IN_A_GRAM,
    threshold: float = 0.5,
) -> pd.DataFrame:
    """Training rows that contain, or nearly contain, a benchmark task.

    Two ways of looking:

    - texts as lower-case words (letters and digits): a row leaks a task when it holds at least `threshold` of the
      `n`-word sequences of the task's prompt, or of its canonical solution;
    - Python as a syntax tree without names of its own, docstrings, annotations and imports: a row leaks a task when its
      code holds at least `threshold` of the sequences of 24 nodes of the task's solution.

    Args:
        examples: frame with `example_id, instruction, response`.
        benchmark_tasks: dicts in EvalPlus's schema (`task_id, prompt, canonical_solution`).
        n: words in a sequence. A task text of fewer words, or a tree of fewer nodes, cannot be told from chance and is
            left out.
        threshold: share of a task's sequences that makes a leak, in (0, 1].

    Returns:
        Frame `example_id, task_id, part, share` (part: `prompt`, `canonical_solution` or `syntax tree`), worst
        first.
    """
    # Two ways, because a copy may change its words or its names. Worth a look: 82 of HumanEval's 164 problems were
    # found solvable straight from a public instruction set (ise-uiuc/magicoder, issue 40).
    holders, sizes = _index_tasks(benchmark_tasks, n)
    leaks = []
    for row in examples.to_dict("records"):
        shared = Counter(task for gram in _row_grams(row, n) for task in holders.get(gram, ()))
        for task, count in shared.items():
            share = count / sizes[task]
            if share >= threshold:
                leaks.append((row["example_id"], *task, share))
    leaks.sort(key=lambda leak: (-leak[-1], *leak[:-1]))
    return pd.DataFrame(leaks, columns=LEAK_COLUMNS)


def leak_table(leaks: Mapping[str, pd.DataFrame], subsets: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """How many rows of each set hold tasks of each benchmark.

    Args:
        leaks: benchmark name -> what `find_leaks` gave for all rows.
        subsets: name of a set ("all rows", "chosen") -> its example_ids.

    Returns:
        Frame `benchmark, set, rows, leaking_rows, share, tasks`; `tasks` counts the distinct tasks that are held.
    """
    lines = []
    for benchmark, found in leaks.items():
        for name, ids in subsets.items():
            inside = found[found["example_id"].isin(ids)]
            leaking = inside["example_id"].nunique()
            share = leaking / max(len(ids), 1)
            lines.append((benchmark, name, len(ids), leaking, share, inside["task_id"].nunique()))
    return pd.DataFrame(lines, columns=["benchmark", "set", "rows", "leaking_rows", "share", "tasks"])


def drop_leaks(examples: pd.DataFrame, leaks: pd.DataFrame) -> pd.DataFrame:
    """`examples` without the rows that `leaks` names, numbered anew."""
    return examples[~examples["example_id"].isin(leaks["example_id"])].reset_index(drop=True)


Gram = tuple[str, ...]
Part = tuple[str, str]  # task_id, part


def _index_tasks(tasks: Iterable[Mapping[str, Any]], n: int) -> tuple[dict[Gram, list[Part]], dict[Part, int]]:
    """gram -> the parts that hold it; part -> its number of grams."""
    holders: dict[Gram, list[Part]] = defaultdict(list)
    sizes: dict[Part, int] = {}
    for task in tasks:
        parts = {part: _word_grams(task[part], n) for part in ("prompt", "canonical_solution")}
        parts["syntax tree"] = _tree_grams(task["prompt"] + task["canonical_solution"])
        for part, grams in parts.items():
            sizes[task["task_id"], part] = len(grams)
            for gram in grams:
                holders[gram].append((task["task_id"], part))
    return holders, sizes


def _row_grams(row: Mapping[Any, Any], n: int) -> set[Gram]:
    """Word grams of both texts, and tree grams of every piece of code in them (marked, so that they never mix)."""
    grams = _word_grams(f"{row['instruction']}\n{row['response']}", n)
    for text in (row["instruction"], row["response"]):
        for code in _CODE_BLOCK.findall(text) or [text]:
            grams |= _tree_grams(code)
    return grams


def _word_grams(text: str, n: int) -> set[Gram]:
    return _grams(re.findall(r"[a-z0-9]+", text.lower()), n)


def _tree_grams(code: str) -> set[Gram]:
    """Grams of the nodes of a piece of Python in reading order; none where it is not Python."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's code.
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
        own = _own_names(tree)
        return {("tree", *gram) for gram in _grams(list(_tokens(tree, own)), NODES_IN_A_GRAM)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()


def _grams(tokens: list[str], n: int) -> set[Gram]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _own_names(tree: ast.AST) -> set[str]:
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


def _tokens(node: ast.AST, own: set[str]) -> Iterator[str]:
    """Node types in reading order, with the names and values that a copy cannot change without changing the program."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return  # a docstring
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
