#!/usr/bin/env bash
# Fills benchmarks/gpu/wheels with what a machine with torch, but without a network, lacks. Python 3.12, x86-64 Linux.
#   benchmarks/gpu/fetch_wheels.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
folder=benchmarks/gpu/wheels
limit_mb=60 # of all that travels, the repository's own files included
names="hydra-core omegaconf gymnasium Farama-Notifications mujoco glfw PyOpenGL metaworld beartype"

mkdir -p "$folder"
rm -f "$folder"/*.whl
pinned=()
for name in $names; do pinned+=("$(grep -i "^$name==" constraints.txt)"); done
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do platforms+=(--platform "${tag}_x86_64"); done
"$python" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$folder" "${pinned[@]}"
# Published as source alone, and pure Python.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$(grep -i '^antlr4-python3-runtime==' constraints.txt)"

mb=$((($(git ls-files -z | xargs -0 cat | wc -c) + $(cat "$folder"/*.whl | wc -c)) / 1000000))
ls -l "$folder"
echo "$mb MB travel, the repository's files included"
[ "$mb" -le "$limit_mb" ] || { echo "more than $limit_mb MB" >&2; exit 1; }
