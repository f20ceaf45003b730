#!/usr/bin/env bash
# Everything that is to be known of a GPU, in 8 minutes; see README.md beside this file.
#   benchmarks/gpu/run.sh [--dry-run] [--only STEP ...]
# Results go below $OUT (default: benchmarks/results). PYTHON names the interpreter that has torch (default: python3).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
site=${TMPDIR:-/tmp}/flowhand_gpu_site
wheels=(benchmarks/gpu/wheels/*.whl)
if [ "${1:-}" != --dry-run ] && [ -e "${wheels[0]}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "${wheels[@]}"
fi
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1 WANDB_MODE=disabled MUJOCO_GL=${MUJOCO_GL:-egl}
exec "$python" -m benchmarks.gpu.kit --out "${OUT:-benchmarks/results}/gpu" "$@"
