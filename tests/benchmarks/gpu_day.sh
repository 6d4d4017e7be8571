#!/usr/bin/env bash
# Everything that only a GPU can answer, in 25 minutes on a bare machine (torch 2.11, transformers 5.17, pytorch-lightning
# 2.6.6, no network). One line an answer: PASS or FAIL with the figure that decides, FIGURE where there is none, SKIP.
#
#   tests/benchmarks/gpu_day.sh                   every part, each with a limit of its own; exit code 1 if any failed
#   tests/benchmarks/gpu_day.sh model mfu         these parts
#   tests/benchmarks/gpu_day.sh --cpu             the same logic on the CPU with small sizes: a dry run
#   WHEELS=folder tests/benchmarks/gpu_day.sh     install what the machine lacks (for `fit`: jsonargparse, wandb ...) from wheels
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
MODE=
if [ "${1:-}" = --cpu ]; then MODE=--cpu; shift; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
if [ -n "${WHEELS:-}" ]; then
  SITE=$(mktemp -d)
  $PYTHON -m pip install --quiet --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl || exit 2
  export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}
fi

# Part and its limit in seconds: 1,470 in all.
LIMITS="machine:60 loss:90 model:90 steps:120 analyses:180 ddp:120 fit:210 mfu:300 compile:300"
failed=0
for entry in $LIMITS; do
  part=${entry%%:*} limit=${entry##*:}
  if [ $# -gt 0 ] && [[ " $* " != *" $part "* ]]; then continue; fi
  timeout --kill-after 10 "$limit" "$PYTHON" tests/benchmarks/gpu_day.py $MODE "$part"
  code=$?
  if [ $code -eq 124 ] || [ $code -eq 137 ]; then echo "FAIL   $part: not done in $limit seconds"; fi
  if [ $code -ne 0 ]; then failed=1; fi
done
exit $failed
