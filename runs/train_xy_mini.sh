#!/usr/bin/env bash
# xy-mini from recordings to the released files: data, tower, vocoder, both stages, export.
#   runs/train_xy_mini.sh FOLDER [KEY=VALUE]...    FOLDER holds train.jsonl and dev.jsonl; overrides go to every stage
# On a GPU: runs/train_xy_mini.sh FOLDER engine.precision=bf16 data.workers=8
# In slices of ten minutes: runs/train_xy_mini.sh FOLDER minutes=10, again and again until it says "done".
# Interrupt it at any time: run it again and it goes on. Needs `apt-get install flite espeak-ng`.
set -euo pipefail
speech=${1:?usage: runs/train_xy_mini.sh FOLDER [KEY=VALUE]...}
shift
cd "$(dirname "$0")/.."
source runs/stages.sh
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1
work=exp/xy-mini
hours=2.5  # of synthetic speech
mkdir -p $work/data

# Everything is decoded once, into files that are only sought in afterwards.
for part in train dev; do
  [ -f $work/data/$part.jsonl.gz ] || xycodec data import "$speech/$part.jsonl" $work/data/$part.jsonl.gz
  [ -d $work/packed-$part ] || xycodec data pack $work/data/$part.jsonl.gz $work/packed-$part
done
[ -f $work/synthetic/cuts.jsonl.gz ] || xycodec data synthesise $work/synthetic --hours $hours
[ -d $work/packed-synthetic ] || xycodec data pack $work/synthetic/cuts.jsonl.gz $work/packed-synthetic
# A clip's id begins with its source's folder: each source gets its own weight.
for source in librispeech ljspeech kerstin_de picovoice_s2i_en picovoice_wakeword_en mycroft_precise; do
  zgrep "^{\"id\": \"$source/" $work/packed-train/cuts.jsonl.gz | gzip -n > $work/data/$source.jsonl.gz
done
[ -z "${DATA_ONLY:-}" ] || exit 0  # of runs/train_x_mini.sh
[ -d $work/lm ] || xycodec data lm $work/packed-train/cuts.jsonl.gz $work/lm --hidden 256 --layers 3

for recipe in recognise vocoder joint again posttrain; do
  stage xy_tokenizer/xy_mini/$recipe.yaml "$@"
done
[ -d $work/release-training ] || xycodec export $work/posttrain $work/release-training --part-mb 15
xycodec convert $work/posttrain $work/release --store float16 --part-mb 15 --overwrite
echo "done: $work/release is the codec, $work/release-training goes on training"
