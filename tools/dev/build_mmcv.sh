#!/usr/bin/env bash
# build_mmcv.sh PYTHON DISTRIBUTION==VERSION CACHE: install mmcv with its
# compiled operators, of which PyPI has the sources only. The wheel is built
# once for each version of Python and torch, and kept in CACHE. If torch sees a
# GPU, it is built for CUDA, too.
set -euo pipefail
python=$1
wanted=$2
distribution=${wanted%%==*}
key=$("$python" -c 'import sys, torch
gpus = range(torch.cuda.device_count() if torch.version.cuda else 0)
print("py%d.%d-torch%s" % (*sys.version_info[:2], torch.__version__) + "".join(
    sorted({"-sm%d%d" % torch.cuda.get_device_capability(i) for i in gpus})))')
cuda=$([[ $key == *-sm* ]] && echo 1 || echo 0)
wheels=$3/$key
wheel() { ls "$1/${distribution//-/_}-${wanted##*==}"-*.whl 2>/dev/null; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

check_tools() {
    command -v c++ >/dev/null || command -v g++ >/dev/null || {
        echo "mmcv's operators need a C++ compiler, but there is none:" \
             "install g++ (Debian: apt-get install g++)." >&2; exit 1; }
    headers=$("$python" -c 'import sysconfig
print(sysconfig.get_path("include"))')
    [ -e "$headers/Python.h" ] || {
        echo "mmcv's operators need $headers/Python.h, but it is not there:" \
             "install Python's headers (Debian: python3-dev)." >&2; exit 1; }
    (( ! cuda )) || "$python" -c 'import os, sys
from torch.utils.cpp_extension import CUDA_HOME
sys.exit(not os.path.exists(os.path.join(CUDA_HOME or "", "bin", "nvcc")))' || {
        echo "torch sees a GPU, and mmcv's operators need nvcc to run there, but" \
             "there is none: install CUDA's toolkit $("$python" -c '
import torch
print(torch.version.cuda)') and set CUDA_HOME, or hide the GPU (export" \
             "CUDA_VISIBLE_DEVICES=)." >&2; exit 1; }
}

# A CUDA toolkit may lack the headers of its libraries, which torch's packages
# have.
find_headers() {
    own=$("$python" -c 'import glob, sysconfig
print(":".join(glob.glob(sysconfig.get_path("purelib") + "/nvidia/*/include")))')
    export CPLUS_INCLUDE_PATH=$own${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}
}

# Print a line for every ten objects that are compiled.
progress() {
    while IFS= read -r line; do
        [[ $line =~ ^\ *\[([0-9]+)/([0-9]+)\] ]] || continue
        done=${BASH_REMATCH[1]} all=${BASH_REMATCH[2]}
        (( done % 10 && done < all )) || echo "  $done of $all objects"
    done
}

build() {
    check_tools
    mkdir -p "$wheels"
    partial=$(mktemp -d "$wheels/partial.XXXX")
    trap 'rm -rf "$partial"' EXIT
    log=$wheels/$distribution.log
    echo "Building $wanted for $key: once, 7 minutes on two cores without CUDA."
    # -g0: without debug symbols it takes half the time. pip's cache does not
    # distinguish a wheel with operators from one without.
    (( ! cuda )) || find_headers
    MMCV_WITH_OPS=1 FORCE_CUDA=$cuda \
        CFLAGS=-g0 CXXFLAGS=-g0 MAX_JOBS=$(nproc) \
        PATH="$(dirname "$(realpath -s "$python")"):$PATH" \
        pip wheel -v --no-build-isolation --no-deps --no-cache-dir \
        --no-binary "$distribution" -w "$partial" "$wanted" 2>&1 \
        | tee "$log" | progress || { tail -n 20 "$log" >&2; exit 1; }
    mv "$(wheel "$partial")" "$wheels/"
}

wheel "$wheels" >/dev/null || build
# The three distributions install the same package.
pip uninstall -qq -y mmcv mmcv-lite onedl-mmcv
pip install -qq --no-deps "$(wheel "$wheels")"
