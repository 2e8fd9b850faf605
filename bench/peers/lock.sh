#!/bin/sh
# Pin the peers' environments again, with hashes. Called by hand with the path of uv; they are no part of Suffice.
set -eu
uv=$1
cd "$(dirname "$0")"
for peer in tensorzero "litellm[proxy]"; do
    echo "$peer" | "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
        --output-file "${peer%%\[*}.txt" --upgrade -
done
