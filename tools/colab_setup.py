"""Installs the clone into Colab's Python and says what that changed there; the first cell of each notebook runs it.

tests/test_colab.py compares the project's requirements with the versions that Colab ships.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
# Not the extra `notebooks`, for Colab has a Jupyter of its own; no huggingface_hub 2, which its other packages refuse.
REQUIREMENTS = ["-e", f"{CLONE}[eval,qlora]", "papermill", "huggingface_hub<2"]
UPGRADED = {
    "transformers": "5.0 to 5.21 lose the blanks of DeepSeek-Coder's text (huggingface/transformers#46489)",
    "huggingface-hub": "transformers, as upgraded, needs it",
    "tokenizers": "transformers, as upgraded, needs it",
}


def installed():
    """The version of every package there is, by its normalised name."""
    importlib.invalidate_caches()
    names = {package.metadata["Name"] for package in metadata.distributions()} - {None}
    return {re.sub(r"[-_.]+", "-", name).lower(): metadata.version(name) for name in names}


def install(*options):
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, *REQUIREMENTS]
    return subprocess.run(command, capture_output=True, text=True)  # pip says a lot that a reader need not worry about


print("Installing the project; this takes a minute or two ...", flush=True)
before = installed()
with tempfile.NamedTemporaryFile("w", suffix=".txt") as held:  # all else of Colab's stays: pip takes what fits it
    held.writelines(f"{name}=={version}\n" for name, version in before.items() if name not in UPGRADED)
    held.flush()
    pip = install("--constraint", held.name)
if pip.returncode:
    pip = install()  # nothing fits: better one upgrade more than no project
if pip.returncode:
    print(pip.stdout, pip.stderr)
    raise RuntimeError("the installation failed: see above, mend it, and run this cell again")

after = installed()
changed = sorted(name for name in before if after.get(name) != before[name])
for name in changed:
    print(f"Upgraded {name} {before[name]} -> {after.get(name)}: {UPGRADED.get(name, 'something new here needs it')}")
outdated = [name for name in changed if name.replace("-", "_") in sys.modules]
if outdated:
    print(f"This kernel had imported {', '.join(outdated)} before: Runtime -> Restart session, then run all cells.")
sys.path.append(str(CLONE))  # this kernel started before the package was there
importlib.invalidate_caches()
print('Installed. The profile "mini" needs no GPU; "colab-qlora" has a real model and wants a T4.')
