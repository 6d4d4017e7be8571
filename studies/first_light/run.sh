#!/usr/bin/env bash
# First light, everything again: corpus, concepts, runs, analyses, tables and figures. What is done is skipped, so the same
# line goes on after any interruption; runs go on to the same bits, on one kind of CPU. JOBS runs at a time, one thread
# each (default 2).
#
#   studies/first_light/run.sh               all of it (days on two cores)
#   studies/first_light/run.sh seeds         corpus, concepts and the five seeds; also: capacity, clone
#   studies/first_light/run.sh analyses      what is planned of every snapshot that there is
#   studies/first_light/run.sh publish       from the results of all runs to the tables in the repository, then:
#   studies/first_light/run.sh --tables      page and figures from the committed tables, without any run
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
JOBS=${JOBS:-2}
HERE=studies/first_light
RUNS=runs/first_light
LANGUAGES="de en es fr hu it ja ko pl pt ru zh"
CONCEPTS="armor attack black book city colour computer dark day death eat enemy fight file fire food friend head keyboard king
language leather letter line metal mouse name network new north number old page paper password picture print road_vehicle
soldier sword table text undead_corpse war water white window word year animal_f building_f clothing_f emotion_f family_f
money_f number_f water_body_f weather_f"
export OMP_NUM_THREADS=1 PYTHON HERE RUNS

sha256sum --quiet --check "$HERE/plan.sha256" || { echo "error: the plan differs from what was committed" >&2; exit 2; }

corpus() {
  [ -e $RUNS/corpus/manifest.json ] && return
  $PYTHON -m data.corpus fetch --cache $RUNS/packages
  $PYTHON -m data.corpus build --cache $RUNS/packages --out $RUNS/corpus
}

concepts() {
  [ -e $RUNS/concepts.parquet ] && return
  $PYTHON -m analysis label --texts $RUNS/corpus/aligned.parquet --out $RUNS/concepts.parquet --languages $LANGUAGES \
    --concepts $CONCEPTS --min_positives 80 --cap 100 --negatives 4
}

# One run: name, seed, and what differs from base.yaml.
train() {
  name=$1 seed=$2; shift 2
  $PYTHON -m train fit --config $HERE/base.yaml "$@" --seed_everything "$seed" --trainer.default_root_dir "$RUNS/$name" \
    >>"$RUNS/$name.log" 2>&1 && echo "$name: done" || { echo "$name: failed, see $RUNS/$name.log" >&2; exit 1; }
}
export -f train

prepare() {  # tokenizer and token streams once, before runs start side by side
  [ -e $RUNS/prepared ] && return
  $PYTHON -m train prepare --config $HERE/base.yaml && touch $RUNS/prepared
}

seeds() {
  corpus; concepts; prepare
  printf '%s\n' 1 2 3 4 5 | xargs -P "$JOBS" -I{} bash -c 'train d128-seed{} {}'
}

capacity() {
  corpus; concepts; prepare
  for seed in 1 2 3 4 5; do
    for width in 32 64 128 256; do echo "$width $seed"; done
  done | xargs -P "$JOBS" -L1 bash -c 'train capacity-d$0-seed$1 $1 --model.d_model $0 --model.ffn_dim $((4 * $0)) \
    --model.attention_heads $(($0 / 32)) --trainer.max_steps 10240'
}

clone() {
  corpus; concepts; prepare
  for seed in 1 2 3; do
    for width in 32 128; do echo "$width $seed"; done
  done | xargs -P "$JOBS" -L1 bash -c 'train clone-d$0-seed$1 $1 --data.languages [en,en2] --model.d_model $0 \
    --model.ffn_dim $((4 * $0)) --model.attention_heads $(($0 / 32)) --trainer.max_steps 10240'
}

# What is planned of one run, as far as its snapshots go: frozen experts and the dear measures need the last one.
analyse() {
  run=$RUNS/$1 lists=""
  ended() { [ -e "$run/snapshots/step_000$1/snapshot.json" ]; }
  case $1 in
    d128-* | again-*) lists="core seeds"; if ended 20480; then lists="core seeds dear followed"; fi ;;
    capacity-*) if ended 10240; then lists="capacity"; fi ;;
    clone-*) if ended 10240; then lists="clone"; fi ;;
  esac
  cp $HERE/plan.sha256 "$run/"
  for list in $lists; do
    nice -n 10 $PYTHON -m analysis run --config "$HERE/analyses/$list.yaml" --source RunFolder --source.path "$run" \
      >>"$RUNS/$1.analyses.log" 2>&1 || { echo "$1: $list failed, see $RUNS/$1.analyses.log" >&2; exit 1; }
  done
  echo "$1: analysed"
}
export -f analyse

analyses() {
  for run in $RUNS/*-seed*/snapshots; do basename "$(dirname "$run")"; done | xargs -P "$JOBS" -I{} bash -c 'analyse {}'
}

publish() { $PYTHON -m studies.first_light.collect --runs $RUNS; tables; }

tables() { $PYTHON -m studies.first_light.tables; }

if [ "$*" = --tables ]; then tables; exit; fi
mkdir -p $RUNS
for part in "${@:-seeds capacity clone analyses publish}"; do
  for one in $part; do $one; done
done
