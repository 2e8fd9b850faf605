#!/bin/sh
# Pin every requirement file again, with hashes, for all platforms and Pythons that we support.
# Called by `make lock` with the path of uv; further arguments (--upgrade) are passed on.
# dev.txt is solved first and binds the others, so that all environments agree on every version.
# Extras stay in the pins: pip before 24 takes `coverage[toml]` of a dependency for another, unpinned requirement.
set -eu
uv=$1
shift
cd "$(dirname "$0")/.."

compile() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --no-strip-extras --custom-compile-command "make lock" "$@"
}

compile pyproject.toml --extra console --extra replay --extra train --extra math --extra postgres --extra archive --extra ray --extra otel --extra oidc --extra yaml --group demo --group dev --output-file requirements/dev.txt "$@"
compile pyproject.toml --constraint requirements/dev.txt --output-file requirements/base.txt
compile pyproject.toml --extra console --extra yaml --extra postgres --extra oidc --extra otel --extra train --extra math --constraint requirements/dev.txt --output-file requirements/image.txt
compile pyproject.toml --extra console --extra yaml --extra postgres --extra oidc --extra otel --extra train --extra math --extra archive --constraint requirements/dev.txt --output-file requirements/image-archive.txt
compile pyproject.toml --extra console --group demo --constraint requirements/dev.txt --output-file requirements/demo.txt
compile --group bench --constraint requirements/dev.txt --output-file requirements/bench.txt
compile --group docs --constraint requirements/dev.txt --output-file requirements/docs.txt
compile --group build --constraint requirements/dev.txt --output-file requirements/build.txt
compile --group lock --output-file requirements/lock.txt "$@"
