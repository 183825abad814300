#!/usr/bin/env bash
# Whether another interpreter does: make python-check PYTHON=python3.13
# In an environment of its own (artifacts/python-3.13; $VENV names another): every module is imported, the fast tests
# run, and the reduced mini goes through all six notebooks.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${VENV:-}" ]; then
    python=$(bash tools/find_python.sh)
    VENV=artifacts/python-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fi
[ -x "$VENV/bin/codeact" ] || VENV=$VENV bash tools/make_venv.sh
"$VENV/bin/python" - <<'PROGRAM'
import importlib, pkgutil, sys
import codeact_lib
names = [module.name for module in pkgutil.walk_packages(codeact_lib.__path__, "codeact_lib.")]
apart = ("codeact_lib.boxed", "codeact_lib.evaluation.boxed", "codeact_lib.bench")  # programs of their own
for name in names:
    if not name.startswith(apart):
        importlib.import_module(name)
print(f"Python {sys.version.split()[0]}: {len(names)} modules")
PROGRAM
slow=(--ignore=tests/test_reduced_mini.py --ignore=tests/test_browser.py)
"$VENV/bin/python" -m pytest -n 2 --dist loadfile -q -m "not slow" "${slow[@]}"
"$VENV/bin/python" -m pytest -q tests/test_reduced_mini.py -k "leaves_tables or running_again or every_executed"
