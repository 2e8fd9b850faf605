#!/bin/sh
# The steps of deploy/Dockerfile that install; they run the same anywhere: sh install.sh packages PREFIX LOCK,
# then sh install.sh suffice PREFIX, from the root of the sources. PREFIX becomes an environment without an installer.
set -eu
step=$1
prefix=$2
install() {
    python3 -m pip --python "$prefix/bin/python" install --quiet --no-deps "$@"
}

case $step in
packages)
    python3 -m venv --without-pip "$prefix"
    install --require-hashes --only-binary :all: -r "requirements/$3.txt"
    ;;
suffice)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --require-hashes --only-binary :all: -r requirements/build.txt
    "$work/env/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
    install --no-index "$work"/suffice-*.whl
    ;;
*)
    echo "install.sh: got the step $step; packages or suffice" >&2
    exit 2
    ;;
esac
