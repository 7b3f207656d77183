#!/usr/bin/env bash
# Set up as quickstart.sh does, then every check: format, lint, types, tests. Arguments go to pytest:
#   bash launch/test.sh tests/unit -k rope
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
    local started=$SECONDS status=0
    printf '\n== %s\n' "$*"
    "$@" || status=$?
    printf -- '-- %d s: %s\n' "$((SECONDS - started))" "$*"
    return "$status"
}

step "${PYTHON:-python3}" launch/bootstrap.py --extra test
export PATH="$PWD/.venv/bin:$PATH"
# An oracle for the shards: pure Python where it is used, so without what it depends on.
step python -m pip install -q --no-deps -c constraints.txt megatron-core
step ruff format --check .
step ruff check .
step mypy
# Before pytest, so that no test's time limit has a compiler in it.
step python -m ds_llama.launcher.ops cpu_adam fused_adam async_io
if (($#)); then
    step pytest --durations=15 "$@"
    exit
fi
# Two files at a time: first what one process does by itself; then what starts ranks, of which a good
# part is imports on one core and waiting. Apart, since tests/unit has limits in seconds.
failed=0
export OMP_NUM_THREADS=1
step pytest -n 2 --dist loadfile --durations=15 tests/unit || failed=$?
step pytest -n 2 --dist loadfile --durations=15 --ignore=tests/unit || failed=$?
exit "$failed"
