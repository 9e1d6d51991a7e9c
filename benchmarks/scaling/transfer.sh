#!/usr/bin/env bash
# Does the best learning rate carry from width to width? And does a law fitted to small widths predict a larger one?
#
#   bash benchmarks/scaling/transfer.sh TRAIN.jsonl VALIDATION.jsonl OUT
#
# 78 small runs on CPUs, under an hour on two cores; docs/scaling.md has what came out. The same command goes on.
set -euo pipefail
train=$1 validation=$2 out=$3
here=$(dirname "$0")
mkdir -p "$out"
data=(--gin.VOCABULARY="$out/tokenizer.model" --gin.PREPARED_DIR="$out/prepared")
[ -e "$out/tokenizer.model" ] || flm tokenizer train --input="$train" --vocab_size=512 --out="$out/tokenizer.model"
flm data prepare --gin_file=gin_configs/data/corpus.gin --gin.TASK_FEATURE_LENGTHS='{"targets": 64}' "${data[@]}" \
  --gin.FILES="{\"train\": \"$train\", \"validation\": \"$validation\"}"

sweep() { flm scaling sweep --gin_file="$here/proxy.gin" "${data[@]}" --seeds=3 --at_once=15 "$@"; }
sweep --out="$out/mup" --widths=64,128,256 --vary=LEARNING_RATE=2e-3,4e-3,8e-3,16e-3 \
  --json="$out/mup.json" --figure="$out/mup.png"

# Small widths at the rate that is best at 64; the law; and then the width that it is to predict.
rate=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))['optima'][0]['best'])" "$out/mup.json")
sweep --out="$out/law" --widths=48,64,80,96,112 --vary=LEARNING_RATE="$rate" --csv="$out/small.csv"
flm scaling fit "$out/small.csv" --predict=2.5
sweep --out="$out/law" --widths=48,64,80,96,112,256 --vary=LEARNING_RATE="$rate" --csv="$out/points.csv"
flm scaling fit "$out/points.csv" --fit_first=15 --json="$out/fit.json" --figure="$out/fit.png"

# At the base width, 64, both parametrisations are one.
sweep --out="$out/standard" --widths=128,256 --vary=LEARNING_RATE=1e-3,2e-3,4e-3,8e-3 \
  --gin.ModelConfig.parametrization=standard --json="$out/standard.json" --figure="$out/standard.png"
