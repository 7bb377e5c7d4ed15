#!/usr/bin/env bash
# x-mini and its acoustic baseline from recordings to folders that `--model` takes.
#   runs/train_x_mini.sh FOLDER [KEY=VALUE]...    FOLDER holds train.jsonl and dev.jsonl; overrides go to every stage
# The semantic model is Whisper tiny.en: WHISPER=FOLDER names a copy where there is no hub.
# On a GPU: runs/train_x_mini.sh FOLDER engine.precision=bf16 data.workers=8
# In slices of ten minutes: runs/train_x_mini.sh FOLDER minutes=10, again and again until it says "done".
# Interrupt it at any time: run it again and it goes on. Data that runs/train_xy_mini.sh has made are used again.
set -euo pipefail
speech=${1:?usage: runs/train_x_mini.sh FOLDER [KEY=VALUE]...}
shift
cd "$(dirname "$0")/.."
source runs/stages.sh
export PATH="$PWD/.venv/bin:$PATH"
work=exp/x-mini
DATA_ONLY=1 runs/train_xy_mini.sh "$speech"

stage xcodec/x_mini/first.yaml semantic_weights="${WHISPER:-openai/whisper-tiny.en}" "$@"
for recipe in second baseline_first baseline_second; do
  stage xcodec/x_mini/$recipe.yaml "$@"
done
mkdir -p $work/release
for pair in second:x-mini baseline-second:x-mini-baseline; do
  xycodec convert $work/${pair%:*} $work/release/${pair#*:} --store float16 --part-mb 15 --overwrite
done
echo "done: $work/release holds both"
