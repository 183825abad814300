#!/usr/bin/env bash
# Makes requirements.lock from pyproject.toml, or checks it (needs the package index):
#   tools/lock.sh            resolve anew, keeping the versions of the present lock where they still fit
#   tools/lock.sh --check    every line has a wheel for each Python of 3.11 to 3.14 on Linux, macOS and Windows
#
# Left out on purpose: the clients of language-model services that EvalPlus names and this project never calls (200 MB,
# and no set of versions of Google's serves Python 3.14), and the CUDA libraries, which come with PyTorch where there is
# a GPU. That is why the lock is installed with --no-deps.
set -euo pipefail
cd "$(dirname "$0")/.."
without_a_wheel=(wget tempdir)  # two single-file packages that EvalPlus imports

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    "$(bash tools/find_python.sh)" -m venv artifacts/uv
    artifacts/uv/bin/python -m pip install --quiet uv
    uv=artifacts/uv/bin/uv
fi
wheels_only=(--only-binary :all: "${without_a_wheel[@]/#/--no-binary=}")

if [ "${1:-}" = --check ]; then
    nowhere=$(mktemp -d)  # a dry run installs nothing; it asks for a place all the same
    trap 'rm -rf "$nowhere"' EXIT
    export MACOSX_DEPLOYMENT_TARGET=14.0  # bitsandbytes has no wheel for an older macOS
    for python in 3.11 3.12 3.13 3.14; do
        for platform in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc; do
            "$uv" pip install --quiet --dry-run --no-deps --target "$nowhere" "${wheels_only[@]}" \
                --python-version "$python" --python-platform "$platform" -r requirements.lock
            echo "Python $python on $platform: every package of requirements.lock has a wheel"
        done
    done
    exit 0
fi

left_out=$(mktemp)
trap 'rm -f "$left_out"' EXIT
cat >"$left_out" <<'NAMES'
anthropic
fire
google-generativeai
openai
stop-sequencer
cuda-bindings
cuda-pathfinder
cuda-toolkit
nvidia-cublas
nvidia-cudnn-cu13
nvidia-cusparselt-cu13
nvidia-nccl-cu13
nvidia-nvshmem-cu13
triton
NAMES
"$uv" pip compile --quiet pyproject.toml --extra all --extra dev --universal --python-version 3.11 --no-header \
    --no-annotate --excludes "$left_out" "${wheels_only[@]}" --output-file requirements.lock
{
    echo "# Every package of a tested installation, direct and indirect, for Python 3.11 to 3.14; made by tools/lock.sh."
    echo "# Installed with --no-deps: tools/lock.sh says what is left out, and why. torch is named without a build."
    grep -v '^#' requirements.lock
} >requirements.lock.new
mv requirements.lock.new requirements.lock
