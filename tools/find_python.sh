#!/usr/bin/env bash
# Prints the newest Python of 3.11 to 3.14 on the path (or $PYTHON), or says how to get one on this machine.
# requires-python has no upper end; these four are the versions that requirements.lock is checked for.
set -euo pipefail

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

can_make_environments() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null  # Debian and Ubuntu ship these two apart
}

without_venv=""
for python in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
    fits "$python" || continue
    if can_make_environments "$python" || command -v uv >/dev/null; then
        command -v "$python"
        exit 0
    fi
    without_venv=${without_venv:-$python}
done

if [ -n "$without_venv" ]; then
    version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "error: Python $version is here, but not the part of it that makes environments. Install it, then call make again:" >&2
    echo "    sudo apt install python$version-venv" >&2
    exit 1
fi

echo "error: no Python of 3.11 to 3.14 was found${PYTHON:+ under the name $PYTHON}. Install one, then call make again:" >&2
offered=$(apt-cache show python3 2>/dev/null | sed -n 's/^Version: \(3\.[0-9]*\).*/\1/p' | head -n 1 || true)
if [ "$(uname -s)" = Darwin ]; then
    echo "    brew install python@3.13" >&2
elif [[ "$offered" =~ ^3\.1[1-4]$ ]]; then
    echo "    sudo apt install python3 python3-venv" >&2
elif command -v dnf >/dev/null; then
    echo "    sudo dnf install python3.13" >&2
fi
echo "    curl -LsSf https://astral.sh/uv/install.sh | sh    # uv: make then lets it fetch a Python" >&2
echo "    conda env create -f environment.yml               # or everything from conda, without make" >&2
exit 1
