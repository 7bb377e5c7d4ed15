#!/usr/bin/env bash
# Both stages of a small XY-Tokenizer on the speech of a folder with train.jsonl and dev.jsonl, then its curves.
#   runs/small.sh ../shared/data/speech
# Interrupt it at any time: run it again and it goes on.
set -euo pipefail
speech=${1:?usage: runs/small.sh FOLDER}
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1
mkdir -p exp/data
for part in train dev; do
  [ -f exp/data/$part.jsonl.gz ] || xycodec data import "$speech/$part.jsonl" exp/data/$part.jsonl.gz
done
[ -d exp/small-lm ] || xycodec data lm exp/data/train.jsonl.gz exp/small-lm --hidden 128 --layers 2
xycodec train xy_tokenizer/small.yaml --resume
xycodec train xy_tokenizer/small_posttrain.yaml --resume
python runs/plot_curves.py exp/small exp/small-post --output exp/small.png
