"""Setting up: the newest Python that fits is taken, and where there is none the message is right for the machine."""

import os
import subprocess

import pytest
from conftest import REPO

HINTS = {
    "apt": "sudo apt install python3 python3-venv",
    "brew": "brew install python@3.13",
    "uv": "astral.sh/uv/install.sh",
    "conda": "conda env create -f environment.yml",
}


def machine(folder, *, pythons=(), without_venv=(), system="Linux", apt=None):
    """A PATH on which only these commands stand; a Python answers as one of its name's version would."""
    commands = {"uname": f"echo {system}"}
    for name in pythons:
        fits = name.removeprefix("python3.").isdecimal() and 11 <= int(name.removeprefix("python3.")) <= 14
        venv = "exit 1" if name in without_venv else "exit 0"
        version = name.removeprefix("python")
        commands[name] = (
            f'case "$2" in *version_info*sys.exit*|*sys.exit*version_info*) exit {0 if fits else 1};; '
            f"*ensurepip*) {venv};; *print*) echo {version};; esac"
        )
    if apt:
        commands["apt-cache"] = f"echo Version: {apt}-1"
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    for name in ("bash", "sh", "sed", "head"):
        (folder / name).symlink_to(f"/bin/{name}" if os.path.exists(f"/bin/{name}") else f"/usr/bin/{name}")
    return folder


def find_python(folder, **environment):
    command = ["/bin/bash", str(REPO / "tools" / "find_python.sh")]
    return subprocess.run(command, env={"PATH": str(folder), **environment}, capture_output=True, text=True)


def test_the_newest_of_the_pythons_that_fit_is_taken(tmp_path):
    found = find_python(machine(tmp_path, pythons=["python3.10", "python3.11", "python3.13", "python3.15"]))
    assert (found.stdout.strip(), found.returncode) == (str(tmp_path / "python3.13"), 0), found.stderr


def test_a_python_can_be_asked_for_by_name(tmp_path):
    folder = machine(tmp_path, pythons=["python3.11", "python3.13"])
    assert find_python(folder, PYTHON="python3.11").stdout.strip() == str(folder / "python3.11")


def test_a_python_without_venv_is_passed_over_for_one_with_it(tmp_path):
    folder = machine(tmp_path, pythons=["python3.12", "python3.13"], without_venv=["python3.13"])
    assert find_python(folder).stdout.strip() == str(folder / "python3.12")


def test_where_only_venv_is_missing_the_package_that_brings_it_is_named(tmp_path):
    found = find_python(machine(tmp_path, pythons=["python3.12"], without_venv=["python3.12"]))
    assert found.returncode == 1 and "sudo apt install python3.12-venv" in found.stderr


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"apt": "3.12.3"}, ("apt", "uv", "conda")),  # Ubuntu 24.04
        ({"apt": "3.14.0"}, ("apt", "uv", "conda")),  # Ubuntu 26.04
        ({"apt": "3.10.6"}, ("uv", "conda")),  # Ubuntu 22.04: its own is too old
        ({"system": "Darwin"}, ("brew", "uv", "conda")),
        ({}, ("uv", "conda")),
    ],
)
def test_without_any_python_the_message_names_what_this_system_offers(tmp_path, facts, said):
    found = find_python(machine(tmp_path, pythons=["python3.10"], **facts))
    assert found.returncode == 1 and found.stdout == ""
    assert {name for name, hint in HINTS.items() if hint in found.stderr} == set(said), found.stderr
