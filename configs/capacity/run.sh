#!/usr/bin/env bash
# The capacity experiment: does sharing rise more where capacity is tighter? A run for every width and seed on the same
# text, tokenizer and steps, then one report. What is done is skipped, what was interrupted goes on: start it again.
#
#   configs/capacity/run.sh cpu       widths 32 to 256, 47 minutes on one CPU core
#   configs/capacity/run.sh small     widths 64 to 512 on a GPU; JOBS=4 GPUS="0 1 2 3" trains four at a time
#   configs/capacity/run.sh full      24 layers, 2^30 tokens of 16 languages a run; bring data/own/aligned.parquet
#
# PYTHON, SEEDS and WIDTHS may be given too. One learning rate would favour one width: it falls with the root of it.
set -euo pipefail
here=configs/capacity family=${1:?family: cpu, small or full} python=${PYTHON:-python}
runs=runs/capacity lr=3e-3 texts=data/embedded_cdda10.parquet analyses=$here/analyses.yaml
label=(--max_concepts 16 --min_positives 40 --cap 40 --complete)
case $family in
  cpu) configs=(--config $here/base.yaml --config $here/cpu.yaml) widths="32 64 128 256" steps=512 ;;
  small) configs=(--config $here/base.yaml) widths="64 128 256 512" steps=2048 ;;
  full) configs=(--config configs/train/xglm_257m.yaml --config $here/full.yaml) widths="64 128 256 512" steps=16384
    runs=runs/capacity-full lr=2e-3 texts=data/own/aligned.parquet analyses=$here/analyses_full.yaml
    label=(--max_concepts 128) ;;
  *) echo "error: no family '$family'; give cpu, small or full" >&2; exit 2 ;;
esac

if [[ $# == 3 ]]; then # one run: run.sh FAMILY WIDTH SEED
  width=$2 seed=$3 folder=$runs/$family-d$2-s$3
  gpus=(${GPUS:-}); ((${#gpus[@]} == 0)) || export CUDA_VISIBLE_DEVICES=${gpus[${SLOT:-0}]}
  [[ -e $folder/snapshots/$(printf 'step_%08d' $steps)/snapshot.json ]] || "$python" -m train fit "${configs[@]}" \
    --model.d_model "$width" --model.attention_heads $((width / 32)) --model.ffn_dim $((8 * width)) \
    --model.optimizer.lr "$(awk "BEGIN { printf \"%.1e\", $lr * sqrt(128 / $width) }")" \
    --seed_everything "$seed" --data.seed "$seed" --trainer.default_root_dir "$folder"
  # What the training could not measure.
  exec "$python" -m analysis run --source RunFolder --source.path "$folder" --analyses "$analyses"
fi

[[ -e $runs/concepts.parquet ]] || "$python" -m analysis label --texts "$texts" --out "$runs/concepts.parquet" "${label[@]}"
"$python" -m train prepare "${configs[@]}" # once, so that runs at the same time do not meet
for seed in ${SEEDS:-1 2 3}; do for width in ${WIDTHS:-$widths}; do echo "$family $width $seed"; done; done |
  xargs -P "${JOBS:-1}" -L 1 --process-slot-var=SLOT "$0" || echo "a run failed; the report leaves it out" >&2
"$python" -m analysis report --capacity "$runs/$family"-d*-s* --out "$runs/$family.html"
