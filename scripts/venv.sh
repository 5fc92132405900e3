#!/bin/sh
# Makes the virtual environment $1 from the lock file $2 (every file by its hash), with uv if it is
# there, else with pip. Prints one readable line when something is missing.
set -eu
venv=$1
lock=$2
python=${PYTHON:-python3}

command -v "$python" >/dev/null 2>&1 || {
    echo "podlink needs Python 3.11 or newer: apt-get install python3 python3-venv" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "podlink needs Python 3.11 or newer; '$python' is $("$python" -V). Name another one: PYTHON=python3.12 make ..." >&2
    exit 1
}
[ -x "$venv/bin/podlink" ] || echo "setting up $venv (once; about a minute)"
if command -v uv >/dev/null 2>&1; then
    [ -x "$venv/bin/python" ] || uv venv --quiet --seed --python "$python" "$venv"
    uv pip install --quiet --python "$venv/bin/python" --require-hashes --compile-bytecode -r "$lock"
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .
else
    if [ ! -x "$venv/bin/pip" ]; then
        "$python" -m venv "$venv" 2>/dev/null || {
            rm -rf "$venv"
            echo "Python's venv module is missing: apt-get install python3-venv" >&2
            exit 1
        }
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
# Start-up time counts in every pod of a local cluster.
"$venv/bin/python" -m compileall -q kit certs proto policy registry sidecar injector traces cni local cli
