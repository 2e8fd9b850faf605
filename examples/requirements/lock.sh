#!/bin/sh
# Pin what the examples with other people's libraries need, with hashes: Suffice's own dependencies and theirs.
# Called by `make lock-clients` with the path of uv; further arguments (--upgrade) are passed on.
set -eu
uv=$1
shift
cd "$(dirname "$0")/../.."

for wanted in examples/requirements/*.in; do
    "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --custom-compile-command "make lock-clients" --constraint requirements/base.txt \
        --output-file "${wanted%.in}.txt" "$@" pyproject.toml "$wanted"
done
