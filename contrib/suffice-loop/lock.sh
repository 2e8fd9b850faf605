#!/bin/sh
# Pin what the adapters are tested with, with hashes: Suffice's own dependencies and the frameworks.
# Called by `make lock-clients` with the path of uv; further arguments (--upgrade) are passed on.
set -eu
uv=$1
shift
cd "$(dirname "$0")/../.."

pin() {
    wanted=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --custom-compile-command "make lock-clients" \
        --output-file "contrib/suffice-loop/$wanted.txt" "$@" "contrib/suffice-loop/$wanted.in"
}

pin requirements --constraint requirements/base.txt pyproject.toml "$@"
pin litellm pyproject.toml "$@"
pin envoy "$@"
