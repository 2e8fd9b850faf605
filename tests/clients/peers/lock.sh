#!/bin/sh
# Pin the clients again, with hashes, for all platforms and Pythons that we support.
# Called by `make lock-clients` with the path of uv; further arguments (--upgrade) are passed on.
# Each client is solved alone: some of them want different versions of the same package.
set -eu
uv=$1
shift
cd "$(dirname "$0")/requirements"

for wanted in *.in; do
    "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --custom-compile-command "make lock-clients" \
        --output-file "${wanted%.in}.txt" "$@" "$wanted"
done

# The versions of package.json are exact; without the addresses any registry can serve them.
cd ../node
npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund --loglevel=error
