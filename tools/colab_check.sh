#!/usr/bin/env bash
# Whether the notebooks do on Colab: its packages in an environment here, the set-up cell, and 00_colab to its end, with
# mini and with small stand-ins for what colab-qlora loads. Needs the package index, and some 15 minutes on two cores.
#   PYTHON313=...     which Python 3.13 makes the environment (5 GB, in artifacts/colab/venv)
#   COLAB_VENV=...    an environment that exists, instead
#   COLAB_OVERRIDES=  keys of mini to change, as JSON, for a shorter run: {"name": "trial", "n_rows_limit": 120}
# Not imitated: the GPU, the hub, Colab's system packages, and those Python packages that none of ours leads to.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=tools/colab_runtime.txt
venv=${COLAB_VENV:-$PWD/artifacts/colab/venv}
work=$(mktemp -d)
trap 'echo "What was run, and what pip said: $work"' ERR

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@" 2>>"$work/pip.log"; }

# ---- Colab's packages ------------------------------------------------------------------------------------------------
[ -x "$venv/bin/python" ] || "${PYTHON313:-python3.13}" -m venv "$venv"
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))'; then
    echo "error: $venv is not made of Python 3.13, as Colab is" >&2
    exit 1
fi
pins_used=$venv/colab_runtime.txt as_made=$venv/colab_packages.txt
names() { sed 's/==.*//' | sort; }
if [ -e "$as_made" ]; then  # what the last check added goes, what it upgraded comes back
    added=$(comm -13 <(names <"$as_made") <(pip list --format=freeze | names))
    [ -z "$added" ] || pip uninstall --quiet --yes $added
    pip install --quiet --no-deps -r "$as_made"
fi
if ! cmp -s "$pins" "$pins_used"; then
    echo "installing the packages of $pins into $venv: 5 GB, some minutes"
    pip install --quiet -r "$pins"
    pip list --format=freeze >"$as_made"
    cp "$pins" "$pins_used"
fi

# ---- the clone: what git would take of this working tree, at the project's address -----------------------------------
mkdir "$work/snapshot" "$work/content" "$work/home" "$work/bin"
git ls-files -coz --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar -c --null -T - | tar -x -C "$work/snapshot"
git -C "$work/snapshot" init -q
git -C "$work/snapshot" add -Af
git -C "$work/snapshot" -c user.name=check -c user.email=check@localhost commit -q -m "the working tree"
address=$("$venv/bin/python" tools/repository.py)
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.file://$work/snapshot.insteadOf" GIT_CONFIG_VALUE_0="$address"

# ---- Colab's machine: an empty home, no bubblewrap -------------------------------------------------------------------
PIP_CACHE_DIR=${PIP_CACHE_DIR:-$(pip cache dir)}
export PIP_CACHE_DIR HOME="$work/home" PATH="$work/bin:$venv/bin:$PATH" PYTHONPATH="$work/machine"
export PYDEVD_DISABLE_FILE_VALIDATION=1  # a debugger's remark about each kernel
export OMP_WAIT_POLICY=PASSIVE  # beside other work threads that spin would take the time that they wait for
unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME JUPYTER_PATH IPYTHONDIR
printf '#!/bin/sh\nexit 127\n' >"$work/bin/bwrap"
chmod +x "$work/bin/bwrap"

"$venv/bin/python" "$work/snapshot/tools/colab_check.py" "$work"
rm -rf "$work"
