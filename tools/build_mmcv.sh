#!/usr/bin/env bash
# build_mmcv.sh PYTHON CACHE: install mmcv with its compiled operators.
# PyPI has the sources only. The wheel is built once for each version of Python
# and torch, and kept in CACHE.
set -euo pipefail
python=$1
version=2.1.0
key=$("$python" -c 'import sys, torch
print("py%d.%d-torch%s" % (*sys.version_info[:2], torch.__version__))')
wheels=$2/$key
if ! ls "$wheels"/mmcv-"$version"-*.whl >/dev/null 2>&1; then
    mkdir -p "$wheels"
    partial=$(mktemp -d "$wheels/partial.XXXX")
    trap 'rm -rf "$partial"' EXIT
    echo "Building mmcv $version for $key: once, 7 minutes on two cores."
    # -g0: without debug symbols it takes half the time.
    CUDA_VISIBLE_DEVICES='' MMCV_WITH_OPS=1 FORCE_CUDA=0 CFLAGS=-g0 CXXFLAGS=-g0 MAX_JOBS=$(nproc) \
        PATH="$(dirname "$(realpath -s "$python")"):$PATH" \
        "$python" -m pip wheel -v --no-build-isolation --no-deps \
        --no-binary mmcv -w "$partial" "mmcv==$version" 2>&1 \
        | tee "$wheels/build.log" \
        | { grep --line-buffered -oE '^ *\[[0-9]+/[0-9]+\]' || true; } \
        || { tail -n 20 "$wheels/build.log"; exit 1; }
    mv "$partial"/mmcv-"$version"-*.whl "$wheels/"
fi
# mmcv and mmcv-lite are one package under two names.
"$python" -m pip uninstall -q -y mmcv-lite
"$python" -m pip install -q --force-reinstall --no-deps "$wheels"/mmcv-"$version"-*.whl
