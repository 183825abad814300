"""The README and the documents say what the repository holds, and their commands and snippets run.

Every line of every ``bash`` block finds its rule in `RULES`. A command that would install something or take minutes is
checked for its target, options or arguments; the others are executed, made small by what the rule appends.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPO, REPOSITORY
from packaging.requirements import Requirement
from typer.main import get_command

from bench.__main__ import app as bench_app
from codeact_lib.cli import app, main
from codeact_lib.config import load_profile
from codeact_lib.evaluation.benchmarks import EVALPLUS
from codeact_lib.mini import build_benchmark, build_corpus

README = (REPO / "README.md").read_text(encoding="utf-8")
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def fenced(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines(page):
    for block in fenced("bash", page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
                if command.strip():
                    yield command.strip()


FIRST_PAGE = {line: page.relative_to(REPO).as_posix() for page in reversed(PAGES) for line in command_lines(page)}
COMMANDS = sorted((page, line) for line, page in FIRST_PAGE.items())  # each once


# ---------------------------------------------------------------------------------------------- how a line is checked


def make_target(line):
    """`make -n` prints the recipe of a target that exists, and runs nothing."""
    subprocess.run([*shlex.split(line), "-n"], cwd=REPO, check=True, capture_output=True)


def dry_run(line):
    """All of `codeact run` but the notebooks."""
    codeact([*shlex.split(line)[1:], "--dry-run"])


def as_it_stands(line):
    codeact(shlex.split(line)[1:])


def codeact(arguments):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments


def small_selection(line):
    """A selection from twelve rows by the mini model, whatever the line names; nothing is fetched."""
    arguments = shlex.split(line)[1:]
    arguments[arguments.index("--model") + 1] = "mini-base"
    codeact([*arguments, "--clusters", "2", "--limit", "12"])


def show_profile(line):
    """`codeact profiles show NAME > FILE`: the file is a profile."""
    words, _, target = line.partition(" > ")
    shown = subprocess.run([sys.executable, "-m", "codeact_lib.cli", *shlex.split(words)[1:]], capture_output=True)
    Path(target).write_bytes(shown.stdout)
    assert load_profile(Path(target).resolve()).name == "mini"


def requirement(line):
    """What `pip install` is given names extras that exist and this repository, or the clone itself."""
    *_, last = shlex.split(line)
    if last != ".":
        wanted = Requirement(last)
        assert wanted.name == PYPROJECT["name"] and wanted.extras <= set(PYPROJECT["optional-dependencies"])
        assert wanted.url in (None, f"git+{REPOSITORY}")


def conda_file(line):
    path = re.search(r"-f (\S+)", line)[1]
    assert yaml.safe_load((REPO / path).read_text())["name"] == "codeact"


def existing_tests(line):
    """The test file is there; running it is not this test's work."""
    assert (REPO / shlex.split(line)[-1]).exists()


def verified(line):
    """nbstripout, told to look and not to write."""
    tool, *options = [word for word in shlex.split(line) if not word.endswith(".ipynb")]
    notebooks = sorted(map(str, (REPO / "notebooks").glob("*.ipynb")))
    subprocess.run([Path(sys.executable).with_name(Path(tool).name), *options, "--verify", *notebooks], check=True)


def script(line):
    """A script of the repository; what it does has a test of its own (tests/pipeline/test_locks.py)."""
    path = REPO / shlex.split(line)[0]
    assert path.stat().st_mode & 0o100, path


def part_of_the_slurm_example(line):
    assert line.removeprefix("srun ") in (REPO / "examples/slurm/run.sbatch").read_text()


def nothing(line):
    """The shell's own words, which change nothing outside it."""


RULES = {
    r"make [a-z-]+": make_target,
    r"(\.venv/bin/)?codeact run .*--dry-run.*": as_it_stands,
    r"(\.venv/bin/)?codeact run.*": dry_run,
    r"(\.venv/bin/)?codeact (plan|explain|profiles list).*": as_it_stands,
    r"codeact profiles show \w+ > my\.yaml": show_profile,
    r"codeact select .*": small_selection,
    rf"git clone {re.escape(REPOSITORY)}": nothing,
    r"cd codeact|conda activate codeact|source \.venv/bin/activate|export PYTHONPATH=\$PWD": nothing,
    r"conda env create -f \S+": conda_file,
    r"pip install .*": requirement,
    r"examples/slurm/\S+ .*": script,
    r"(run_id=|srun ).*": part_of_the_slurm_example,
    r"\.venv/bin/python -m pytest .*": existing_tests,
    r"\.venv/bin/nbstripout .*": verified,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files the documents speak of."""
    folder = tmp_path_factory.mktemp("workplace")
    rows = build_corpus("mini-evol").head(24)[["instruction", "response"]]
    rows.to_json(folder / "data.jsonl", orient="records", lines=True)
    named = rows.rename(columns={"instruction": "problem", "response": "solution"})
    named.to_json(folder / "my-set.jsonl", orient="records", lines=True)
    extending = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
    (folder / "my_rules.py").write_text(next(b for b in fenced("python", extending) if b.startswith("# my_rules.py")))
    (folder / "my.yaml").write_text((REPO / "codeact_lib/profiles/mini.yaml").read_text(encoding="utf-8"))
    stem, versions = EVALPLUS["humaneval"]
    (folder / "evalplus").mkdir()  # the cache of its benchmarks: nothing is fetched
    (version, size), tasks = next(iter(versions.items())), build_benchmark("mini-humaneval")
    tasks = [{**tasks[n % len(tasks)], "task_id": f"HumanEval/{n}"} for n in range(size)]
    (folder / "evalplus" / f"{stem}-{version}.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    return folder


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_the_documents_runs(page, line, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace))
    monkeypatch.syspath_prepend(str(workplace))
    rules = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, line)]
    assert rules, f"{page}: tests/test_readme.py has no rule for `{line}`"
    rules[0](line)


def test_every_page_with_commands_is_looked_at():
    assert {page for page, _ in COMMANDS} >= {"README.md", "CONTRIBUTING.md", "docs/extending.md"}
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("name", ["packing", "train", "ifd", "select", "generate", "eval"])
def test_the_readme_names_every_bench_and_links_its_table(name):
    assert name in {command.name for command in bench_app.registered_commands}
    assert f"results/bench/{name}.md" in README
    assert name in re.search(r"`python -m bench ([a-z|]+)`", README)[1].split("|")


def test_every_codeact_command_named_in_the_text_is_understood():
    """Those in the running text, e.g. `codeact plan --profile paper`: the command is there, and has these options."""
    named = {n for page in PAGES for n in re.findall(r"`codeact ([a-z][^`]*)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 8
    for words in sorted(named):
        first, *rest = words.split()
        command = get_command(app).commands[first]
        if hasattr(command, "commands"):
            names, *rest = rest or ["|".join(command.commands)]
            subcommands = [command.commands[name] for name in names.split("|")]
        else:
            subcommands = [command]
        for option in (word for word in rest if word.startswith("--")):
            known = {name for c in subcommands for parameter in c.params for name in parameter.opts}
            assert option in known, words


# ---------------------------------------------------------------------------------------------- snippets


def test_the_trainer_snippet_trains_a_tiny_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    names = {
        "tokenizer": 0,  # a padding token id will do
        "model": LlamaForCausalLM(config),
        "args": TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
        ),
        "tokenized": [{"input_ids": list(range(1, n)), "labels": list(range(1, n))} for n in range(3, 19)],
    }
    exec(snippet("Trainer("), names)
    names["trainer"].train()
    assert names["trainer"].state.global_step == 2


def test_the_sampling_snippet_chooses_the_rows_its_comment_says():
    names = {}
    exec(snippet("cdas_sample("), names)
    said = re.search(r"# \[([\d, ]+)\]", snippet("cdas_sample("))[1]
    assert names["rows"].tolist() == [int(n) for n in said.split(",")]


def snippet(containing):
    (found,) = [block for block in fenced("python", README) if containing in block]
    return found


def test_no_python_snippet_of_the_documents_is_left_unrun():
    """The README's two run above, those of docs/extending.md in tests/test_extending.py; a new one needs a test."""
    found = [page.name for page in PAGES for _ in fenced("python", page.read_text(encoding="utf-8"))]
    assert found == ["README.md"] * 2 + ["extending.md"] * 2


# ---------------------------------------------------------------------------------------------- what it says


def test_its_tables_are_those_in_results():
    shown = dict(re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end of table -->", README, re.DOTALL))
    assert set(shown) == {"results/mini/tables/rq1.md", "results/mini-full/tables/headline.md"}
    for path, table in shown.items():
        committed = (REPO / path).read_text(encoding="utf-8")
        assert table.strip() == committed.strip(), f"README.md is behind {path}: run `make readme`"


def test_what_it_says_of_the_wide_grid_is_what_the_tables_say():
    folder = REPO / "results/mini-full"
    tests, split, costs = (pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("comparisons", "split", "costs"))
    assert set(tests[tests["compared_with"].str.startswith("random")]["finding"]) == {"no difference shown"}
    ratios = split.pivot(index="setting", columns=["data", "batching"], values="time_ratio")
    assert (ratios["CDAS 40%", "dynamic padding"] < ratios["all", "Dynamic Pack"]).all()
    assert set(costs[costs["arm"].str.startswith("CodeACT")]["break_even_trainings"]) == {2}
    assert f"{len(list((folder / 'metrics').glob('*__mini-*__*.json')))} trainings" in README


def test_its_ratios_are_those_of_the_benches():
    contenders = {
        "train": "balanced, isolated, supervised positions",
        "ifd": "ours, full-length",
        "generate": "batches of 80",
        "eval": "ours, in bubblewrap",
    }
    for name, contender in contenders.items():
        row = bench_row(name, contender)
        ratio = row.get("memory_ratio")
        memory = "-" if not ratio else f"{ratio:.2f}×" if ratio < 1 else f"{ratio:.0f}×"
        (line,) = re.findall(rf"^\| \[.*\(results/bench/{name}.md\).*$", README, re.MULTILINE)
        assert line.endswith(f"| {row['speedup']:.1f}× | {memory} |"), line
    chosen = bench_row("select", "1,000,000 rows")
    assert f"takes {chosen['seconds']:.1f} s and {chosen['process_memory_gb']:.1f} GB" in README
    strategies = ("dynamic", "dynamic_pack", "balanced_pack")
    padding = [100 * bench_row("packing", f"{name}, batch")["padding_rate"] for name in strategies]
    said = "is {:.0f}% of the slots with dynamic padding, {:.1f}% with Dynamic Pack and {:.1f}% with `balanced_pack`"
    assert said.format(*padding) in " ".join(README.split())


def bench_row(name, contender):
    facts = json.loads((REPO / f"results/bench/{name}.json").read_text())
    (row,) = [row for row in facts["rows"] if row["contender"] == contender]
    return row


def test_the_first_screen_has_the_picture_and_the_two_commands():
    top = README.split("<!-- table: ")[0]
    assert re.search(r"!\[[^]]+\]\(results/mini/figures/[\w.]+\)", top)
    assert [line.split("#")[0].strip() for line in fenced("bash", top)[0].splitlines()] == [
        "make reproduce",
        "make test",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)\)", text) if not t.startswith("http")]
    assert [t for t in targets if not (page.parent / t).exists()] == []
    ours = [t for t in re.findall(rf"{re.escape(REPOSITORY.removeprefix('https://'))}/blob/main/([^)\s]+)", text)]
    ours += re.findall(r"colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/main/([^)\s]+)", text)
    assert [t for t in ours if not (REPO / t).exists()] == []


def test_every_message_of_the_trouble_table_is_one_the_code_says():
    table = README.split("| message | what to do |")[1].split("\n\n")[0]
    messages = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(messages) > 8
    sources = [*(REPO / "codeact_lib").rglob("*.py"), *(REPO / "tools").glob("*.sh")]
    said = joined_literals("\n".join(path.read_text(encoding="utf-8") for path in sources))
    said += " ".join((REPO / "codeact_lib" / "hub.yaml").read_text(encoding="utf-8").split())
    missing = [m for m in messages if not all(part in said for part in fixed_parts(m))]
    assert missing == []


def joined_literals(source):
    """Source in which the parts of a string that goes over several lines are put together, without ` marks."""
    return re.sub(r'"\s*\n\s*f?"', "", source).replace("`", "")


def fixed_parts(message):
    """What is left of a message without the words that stand for what an f-string puts there."""
    parts = [part.strip() for part in re.split(r"'\w+'|evalplus|…", message)]
    return [part for part in parts if len(part) > 1]


def test_the_citation_of_the_readme_is_that_of_the_citation_file():
    paper = yaml.safe_load((REPO / "CITATION.cff").read_text())["preferred-citation"]
    entry = README.split("@article{")[1].split("```")[0]
    assert paper["title"] in entry and str(paper["year"]) in entry and paper["journal"] in entry
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in entry
