"""The project around the code: versions that agree, no trace of the machine it was made on, targets that work."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path

import pytest
import yaml
from conftest import REPO, REPOSITORY
from packaging.requirements import Requirement

import codeact_lib
from codeact_lib.pipeline.run import repository

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OWNER_AND_NAME = REPOSITORY.removeprefix("https://github.com/")
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
NAMED = [Requirement(text) for text in [*PYPROJECT["dependencies"], *sum(EXTRAS.values(), [])]]
DIRECT = [requirement for requirement in NAMED if requirement.name != PYPROJECT["name"]]  # not the extra `all`


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lock():
    """Package -> version, of the lines that hold for the running Python on this platform."""
    lines = [line for line in (REPO / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    wanted = [Requirement(line) for line in lines]
    here = [requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate()]
    return {canonical(requirement.name): str(requirement.specifier).removeprefix("==") for requirement in here}


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [REPO / name for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]


# ---------------------------------------------------------------------------------------------- versions


def test_the_lock_pins_one_version_of_each_package_and_names_no_index_and_no_build():
    lines = [line for line in (REPO / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+( ; [a-z_]+ .+)?", line), line
    for python in ("3.11.2", "3.11.9", "3.12.4", "3.13.5", "3.14.1"):
        there = {"python_version": python.rpartition(".")[0], "python_full_version": python}
        wanted = [Requirement(line) for line in lines]
        names = [one.name for one in wanted if not one.marker or one.marker.evaluate(there)]
        assert len(names) == len(set(names)) > 150, python


# Clients of language-model services, which EvalPlus names and nothing here calls: tools/lock.sh.
LEFT_OUT = {"anthropic", "fire", "google-generativeai", "openai", "stop-sequencer"}


def test_the_lock_holds_everything_that_its_packages_need_but_what_it_names_as_left_out():
    """It is installed with --no-deps, so a line that is missing would be found only by an import that fails."""
    pinned, missing = lock(), set()
    for name in pinned.keys() - {"torch"}:  # a CUDA build brings its libraries itself
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            if canonical(needed.name) not in pinned:
                missing.add(canonical(needed.name))
            else:
                assert pinned[canonical(needed.name)] in needed.specifier, (name, text)
    assert missing == LEFT_OUT
    assert all(f"\n{name}\n" in (REPO / "tools" / "lock.sh").read_text() for name in LEFT_OUT)


def test_the_lock_satisfies_every_direct_dependency():
    for requirement in DIRECT:
        assert lock()[canonical(requirement.name)] in requirement.specifier, requirement


def test_what_is_tested_is_what_the_lock_pins():
    """torch's version may end in the build its index offered, as in 2.13.0+cpu."""
    for requirement in DIRECT:
        name = canonical(requirement.name)
        assert version(name).partition("+")[0] == lock()[name], f"{name}: install requirements.lock again"


def test_the_conda_file_says_the_same_versions_as_the_lock_for_exactly_the_direct_dependencies():
    parts = yaml.safe_load((REPO / "environment.yml").read_text())["dependencies"]
    pinned = dict(line.split("==") for line in parts[-1]["pip"])
    assert {canonical(name) for name in pinned} == {canonical(requirement.name) for requirement in DIRECT}
    for name, pin in pinned.items():
        assert lock()[canonical(name)] == pin, name
    # what conda itself installs: an interpreter that the lock is checked for, and pip for the rest
    assert parts[:-1] == ["python=3.13", "pip"]
    wanted = Requirement(f"python{PYPROJECT['requires-python']}").specifier
    assert all(f"Programming Language :: Python :: {v}" in PYPROJECT["classifiers"] and v in wanted for v in PYTHONS)
    assert "3.15" in wanted and "3.10" not in wanted  # no upper end


def test_each_line_of_the_conda_file_says_which_notebooks_need_it():
    lines = (REPO / "environment.yml").read_text().split("dependencies:\n")[1].splitlines()
    for line in lines:
        if line.strip() != "- pip:":
            assert re.search(r"  # ((0[1-6] )*0[1-6]: .+|tests only|style checks only.*)$", line), line


def test_every_third_party_import_is_a_declared_dependency():
    declared = {canonical(requirement.name) for requirement in DIRECT}
    providers = packages_distributions()
    # what a declared package brings and hands to us as part of its own interface
    brought = {
        "IPython": "ipykernel",
        "traitlets": "nbclient",
        "huggingface_hub": "transformers",
        "packaging": "pytest",
        "threadpoolctl": "scikit-learn",
        "pydantic_core": "pydantic",
        "markupsafe": "jinja2",
    }
    for path in [*(REPO / "codeact_lib").rglob("*.py"), *(REPO / "notebooks").glob("*.ipynb")]:
        for name in imported_packages(path):
            # vLLM: only where a user has it; google.colab: only on Colab
            if name in sys.stdlib_module_names or name in ("codeact_lib", "vllm", "google"):
                continue
            found = {canonical(brought.get(name, "")), *map(canonical, providers.get(name, []))}
            assert found & declared, f"{path.name} imports {name}"


def sources(path):
    if path.suffix == ".py":
        return [path.read_text(encoding="utf-8")]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.MULTILINE) for text in lines]


def imports(path):
    """Full dotted names of every import in a file, those inside functions too."""
    for text in sources(path):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_packages(path):
    return {name.split(".")[0] for name in imports(path)}


# ---------------------------------------------------------------------------------------------- structure


def imports_are_in_order(folder):
    """The import contract of pyproject.toml, on a copy of the package."""
    shutil.copyfile(REPO / "pyproject.toml", folder / "pyproject.toml")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)
    return done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        (None, "", "2 kept, 0 broken"),
        ("errors", "import codeact_lib.config", "errors is not allowed to import codeact_lib.config"),
        ("data/rows", "import codeact_lib.training", "data is not allowed to import codeact_lib.training"),
        ("mini/text", "import codeact_lib.data", "No circles BROKEN"),
    ],
)
def test_imports_point_one_way_and_a_turned_arrow_is_found(tmp_path, module, line, said):
    shutil.copytree(
        REPO / "codeact_lib", tmp_path / "codeact_lib", ignore=shutil.ignore_patterns("__pycache__", "mini-base")
    )
    if module:
        path = tmp_path / "codeact_lib" / f"{module}.py"
        path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    kept, text = imports_are_in_order(tmp_path)
    assert kept == (module is None) and said in " ".join(text.split()), text


CONTRACT = {
    "config": "load_profile Profile Run",
    "data": "load_instructions ValidationReport find_leaks",
    "prompts": "PromptTemplate TEMPLATES tokenize_example",
    "embedding": "embed_instructions cluster_embeddings",
    "ifd": "score_ifd ifd_from_nll",
    "sampling": "cdas_sample random_sample longest_sample ifd_sample stratified_sample",
    "packing": "plan_rows PaddingStrategy DynamicPackCollator padding_report",
    "modeling": "load_base_model supervised_loss use_supervised_loss",
    "training": "fine_tune TrainReport",
    "generation": "generate_solutions",
    "evaluation": "evaluate_solutions PassAtOne",
    "sandbox": "run_isolated probe_isolation",
    "statistics": "pass_interval paired_test",
    "tables": "rq1_table rq2_table write_table",
    "figures": "save_figure",
    "artifacts": "RunPaths StageManifest",
    "pipeline": "plan run open_stage",
    "mini": "build_corpus build_benchmark build_base_model",
    "select": "select_rows",
}


@pytest.mark.parametrize("module", CONTRACT)
def test_names_in_users_hands_stay_importable_from_where_they_were(module):
    home = importlib.import_module(f"codeact_lib.{module}")
    assert [name for name in CONTRACT[module].split() if not callable(getattr(home, name, None))] in ([], ["TEMPLATES"])


def test_no_folder_holds_more_than_thirteen_python_files():
    folders = [REPO / "codeact_lib", *(path for path in (REPO / "codeact_lib").rglob("*") if path.is_dir())]
    assert {folder.name: n for folder in folders if (n := len(list(folder.glob("*.py")))) > 13} == {}


def test_importing_the_package_loads_nothing_of_weight():
    code = "import sys, codeact_lib; print(*{'torch', 'pandas', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize("name", codeact_lib.__all__)
def test_every_public_name_can_be_imported_and_has_a_docstring(name):
    value = getattr(codeact_lib, name)
    assert not callable(value) or (value.__doc__ or "").strip()


def test_every_pattern_of_package_data_matches_something():
    patterns = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["codeact_lib"]
    for pattern in patterns:
        assert list((REPO / "codeact_lib").glob(pattern)), pattern


# ---------------------------------------------------------------------------------------------- no trace of a machine


def test_no_tracked_file_names_a_folder_of_a_machine_or_a_registry():
    home = ["root", "home/[a-z]+", "work", "Users/[a-z]+", "opt/(?:wheels|pypi)"]
    machine = re.compile(rf"(?<![\w.~*-])/(?:{'|'.join(home)})/[\w.]")
    # the options may be named, for set-up passes on what a user has set; a place after them may not
    registry = re.compile(
        r"(?:index-url|find-links)[ =,]+[\"']?(?:https?:(?!//download\.pytorch\.org/)|file:|/\w)|/simp" r"le\b"
    )
    for path in tracked_files():
        if path.suffix in (".safetensors", ".png", ".pdf", ".bpf"):
            continue
        text = path.read_text(encoding="utf-8")
        for pattern in (machine, registry, re.compile(re.escape(f"{REPO}/"))):
            found = pattern.search(text)
            assert not found, f"{path.relative_to(REPO)}: {text[max(0, found.start() - 40) : found.end() + 40]!r}"


def test_no_large_or_pickled_file_is_tracked():
    for path in tracked_files():
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".bin", ".joblib"), path
        assert path.stat().st_size <= 8 * 2**20, path


# ---------------------------------------------------------------------------------------------- licence, targets


def test_the_licence_is_the_whole_apache_licence_and_everything_names_it():
    text = (REPO / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000
    assert yaml.safe_load((REPO / "CITATION.cff").read_text())["license"] == "Apache-2.0"
    assert PYPROJECT["license"] == "Apache-2.0 AND PSF-2.0"  # the latter: mini/stdlib_texts


def test_texts_of_the_standard_library_come_with_their_licence_and_the_notices_of_their_modules():
    folder = REPO / "codeact_lib" / "mini" / "stdlib_texts"
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (folder / "LICENSE.txt").read_text()
    notices = (folder / "NOTICES.txt").read_text()
    assert "What was changed" in notices and "Redistributions of source code must retain" in notices


# Keys that the Citation File Format 1.2.0 requires, and of those it knows the ones we use.
CFF = {"cff-version", "message", "title", "authors"}, {"type", "license", "version", "repository-code", "url"}
CFF_REFERENCE = {"type", "title", "authors"}, {"year", "journal", "url", "identifiers", "doi"}


def test_the_citation_prefers_the_paper_and_is_a_valid_citation_file():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    paper = citation.pop("preferred-citation")
    for entry, (required, known) in ((citation, CFF), (paper, CFF_REFERENCE)):
        assert required <= set(entry) <= required | known
        for author in entry["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and paper["type"] == "article"
    assert all(set(identifier) == {"type", "value"} for identifier in paper["identifiers"])
    assert [author["family-names"] for author in paper["authors"]] == ["Lv", "Xia", "Huang"]
    assert paper["url"].endswith("2408.02193") and paper["year"] == 2024
    assert str(citation["version"]) == PYPROJECT["version"] == codeact_lib.__version__
    assert citation["repository-code"] == REPOSITORY == repository()


def test_one_address_stands_everywhere_and_one_command_changes_it(tmp_path):
    files = [
        path for path in tracked_files() if path.suffix in (".toml", ".md", ".cff", ".ipynb", ".py", ".sh", ".yml")
    ]
    for path in files:
        if "results" not in path.relative_to(REPO).parts[:1] and OWNER_AND_NAME in path.read_text(encoding="utf-8"):
            copy = tmp_path / path.relative_to(REPO)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    shutil.copytree(REPO / "tools", tmp_path / "tools", dirs_exist_ok=True)
    other = "https://github.com/someone-else/packed"
    command = [sys.executable, tmp_path / "tools" / "repository.py"]
    refused = subprocess.run([*command, "https://example.org/codeact"], capture_output=True, text=True)
    assert refused.returncode == 1 and "https://github.com/OWNER/NAME" in refused.stderr
    subprocess.run([*command, other], check=True, capture_output=True)
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == other
    changed = "\n".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file())
    assert OWNER_AND_NAME not in changed and f"git clone {other} && cd packed" in changed
    assert changed.count("github.com/someone-else/packed") > 10 and changed.count("github/someone-else/packed") > 7
    assert 'run_path(\\"packed/tools' in changed


def test_make_alone_explains_every_target():
    shown = subprocess.run(["make"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.+)$", (REPO / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert re.findall(r"^make ([a-z-]+) +\S", shown, re.MULTILINE) == targets


def test_the_ci_script_is_executable_and_calls_make_check_before_make_test():
    script = REPO / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.index("\nmake --no-print-directory check\n") < text.index("\nmake --no-print-directory test")


def test_make_check_lints_looks_at_notebooks_and_checks_types():
    recipe = subprocess.run(["make", "-n", "check"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for tool in ("ruff check", "ruff format --check", "nbstripout", "mypy", "lint-imports"):
        assert f"bin/{tool}" in recipe


FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >> log ;;
    "-m pip") shift 2; case "$1" in install) echo "pip:$*" | tr ' ' , >> log ;; esac ;;
    "-m pytest") echo pytest >> log ;;
    "-c import torch"*) echo 2.13.0+cpu without CUDA ;;
    "- https"*) exit $CPU_INDEX_IS_AWAY ;;
    "--version ") echo Python 3.11.7 ;;
esac
"""
OPTIONS = "--quiet,--disable-pip-version-check,--no-compile"


@pytest.fixture
def bare_clone(tmp_path, monkeypatch):
    """The files `make` looks at, and a PATH whose python3 only writes down what it was asked to do."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((REPO / name).read_text())
    shutil.copytree(REPO / "tools", tmp_path / "tools")
    commands = tmp_path / "commands"
    commands.mkdir()
    for tool in "bash sh make mkdir cp echo touch id awk rm cat sed tr uname dirname du cut head".split():
        found = next(f"{p}/{tool}" for p in ("/usr/bin", "/bin", "/usr/local/bin") if Path(p, tool).exists())
        (commands / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(commands))
    for setting in ("PYTHON", "VENV", "USE_UV"):  # of whoever runs these tests with another interpreter
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv("CPU_INDEX_IS_AWAY", "0")
    return tmp_path


def install_python(bare_clone, name="python3", script=FAKE_PYTHON):
    (bare_clone / "commands" / name).write_text(script)
    (bare_clone / "commands" / name).chmod(0o755)


def make(folder, *arguments):
    result = subprocess.run(["make", "-C", str(folder), *arguments], capture_output=True, text=True)
    log = folder / "log"
    done = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return result, done


@pytest.mark.parametrize("name", ["python3.11", "python3.14", "python3"])
def test_make_builds_the_environment_when_it_is_missing_or_older_than_the_lock(bare_clone, name):
    install_python(bare_clone, name)
    _, done = make(bare_clone, "test")
    assert [line.split(":")[0] for line in done] == ["venv", "pip", "pip", "pip", "pytest"]
    assert done[2:4] == [f"pip:install,{OPTIONS},--no-deps,{what}" for what in ("-r,requirements.lock", "-e,.")]
    assert make(bare_clone, "test")[1] == ["pytest"]
    later = (bare_clone / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(bare_clone / "requirements.lock", (later, later))
    assert make(bare_clone, "test")[1][:1] == ["venv"]


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="about machines without an NVIDIA GPU")
@pytest.mark.parametrize(
    ("away", "how", "where"),
    [
        ("0", "--no-deps,--index-url,https://download.pytorch.org/whl/cpu,torch==", "PyTorch's own index"),
        ("1", "-c,requirements.lock,torch==", "where pip is told to look"),
    ],
)
def test_without_a_gpu_torch_comes_from_the_index_of_cpu_builds_where_that_answers(
    bare_clone, monkeypatch, away, how, where
):
    monkeypatch.setenv("CPU_INDEX_IS_AWAY", away)
    install_python(bare_clone)
    result, done = make(bare_clone, "test")
    assert done[1].startswith(f"pip:install,{OPTIONS},{how}"), done
    assert f"PyTorch 2.13.0+cpu without CUDA, from {where}" in result.stdout


def test_with_an_nvidia_gpu_torch_comes_from_the_package_index(bare_clone):
    install_python(bare_clone)
    install_python(bare_clone, "nvidia-smi", "#!/bin/sh\nexit 0\n")
    result, done = make(bare_clone, "test")
    assert "--index-url" not in done[1] and "from the package index" in result.stdout


def test_make_says_so_when_there_is_no_suitable_python(bare_clone):
    install_python(bare_clone, script="#!/bin/sh\nexit 1\n")
    result, done = make(bare_clone, "test")
    assert result.returncode != 0 and done == []
    assert "no Python of 3.11 to 3.14 was found" in result.stderr and "Traceback" not in result.stderr
