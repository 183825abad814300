#!/usr/bin/env bash
# Makes .venv with the versions of requirements.lock, by uv where it is installed, by pip elsewhere.
#   PYTHON=python3.12  which Python to take instead of the newest
#   USE_UV=0           pip, even where uv is installed
#   VENV=folder        another place than .venv
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
cpu_index=https://download.pytorch.org/whl/cpu
uv=""
[ "${USE_UV:-1}" = 0 ] || uv=$(command -v uv || true)

install() {
    if [ -n "$uv" ]; then
        "$uv" pip install --quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
    fi
}

has_nvidia_gpu() {
    [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1 || /usr/lib/wsl/lib/nvidia-smi -L >/dev/null 2>&1
}

answers() {
    "$venv/bin/python" - "$1" 2>/dev/null <<'PROGRAM'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=10)
PROGRAM
}

# ---- an empty environment -------------------------------------------------------------------------------------------
if ! python=$(bash tools/find_python.sh 2>&1); then
    [ -n "$uv" ] || { echo "$python" >&2; exit 1; }
    python=3.13  # uv fetches it
fi
if [ -n "$uv" ]; then
    "$uv" venv --quiet --seed --clear --python "$python" "$venv"
    # uv does not read pip's settings: it is told where pip looks
    setting() { "$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true; }
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(setting index-url)}}
    export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(setting find-links)}}
    [ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX
    [ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
else
    "$python" -m venv --clear "$venv"
fi
installer=pip
[ -z "$uv" ] || installer=uv
echo "$("$venv/bin/python" --version): $installer installs the versions of requirements.lock into $venv; this takes some minutes"

# ---- PyTorch: on Linux without an NVIDIA GPU the build without CUDA, which is 4 GB smaller ---------------------------
torch=$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.lock)
if [ "$(uname -s)" != Linux ] || has_nvidia_gpu; then
    install -c requirements.lock "$torch"
    place="the package index"
elif answers "$cpu_index/torch/"; then
    install --no-deps --index-url "$cpu_index" "$torch"
    place="PyTorch's own index of CPU builds"
else
    install -c requirements.lock "$torch"  # where a CPU build lies beside a CUDA one, it counts as the newer
    place="where pip is told to look ($cpu_index does not answer)"
fi

# ---- everything else. The lock is complete, so nothing is resolved; tools/lock.sh says what it leaves out -------------
install --no-deps -r requirements.lock
install --no-deps -e .

# Bytecode for all that is ever imported, by all cores: pip's own is made by one core, for every package's tests as well.
"$venv/bin/python" -m compileall -q -j 0 -x '/tests?/|/transformers/models/' "$venv/lib" >/dev/null 2>&1 || true

build=$("$venv/bin/python" -c 'import torch; print(torch.__version__, "with CUDA" if torch.version.cuda else "without CUDA")')
echo "PyTorch $build, from $place; $venv holds $(du -sh "$venv" | cut -f 1)"
