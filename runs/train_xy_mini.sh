#!/usr/bin/env bash
# xy-mini from recordings to the released files: data, vocoder, both halves of stage one, decoder, discriminators, export.
#   runs/train_xy_mini.sh FOLDER [KEY=VALUE]...    FOLDER holds train.jsonl and dev.jsonl; overrides go to every stage
# The semantic tower and the teacher are Whisper tiny.en: WHISPER=FOLDER names a copy where there is no hub.
# Russian speech comes from Debian's festvox-ru (apt-get install festvox-ru; FESTVOX=FOLDER if unpacked elsewhere).
# In slices of an hour: runs/train_xy_mini.sh FOLDER minutes=60, again and again until it says "done".
# In the background, one core, always behind other work: nohup nice -n 10 runs/train_xy_mini.sh FOLDER &
# Interrupt it at any time: run it again and it goes on from its last checkpoint.
# On a processor without bfloat16 units: engine.precision=float32. On a GPU: data.workers=8.
set -euo pipefail
speech=${1:?usage: runs/train_xy_mini.sh FOLDER [KEY=VALUE]...}
shift
cd "$(dirname "$0")/.."
source runs/stages.sh
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
work=exp/xy-mini
mkdir -p $work/data

# Everything is decoded once, into files that are only sought in afterwards.
pack() {  # pack NAME MANIFEST
  [ -f "$work/data/$1.jsonl.gz" ] || xycodec data import "$2" "$work/data/$1.jsonl.gz"
  [ -d "$work/packed-$1" ] || xycodec data pack "$work/data/$1.jsonl.gz" "$work/packed-$1"
}
pack train "$speech/train.jsonl"
pack dev "$speech/dev.jsonl"
[ -f $work/russian.jsonl ] || python runs/festvox_ru.py "${FESTVOX:-/}" > $work/russian.tmp
[ -f $work/russian.jsonl ] || mv $work/russian.tmp $work/russian.jsonl
pack ru $work/russian.jsonl
# A clip's id begins with its source's folder: each source gets its own weight.
for source in librispeech ljspeech kerstin_de picovoice_s2i_en picovoice_wakeword_en mycroft_precise dsp20 arabic_commands; do
  zgrep "^{\"id\": \"$source/" $work/packed-train/cuts.jsonl.gz | gzip -n > $work/data/$source.jsonl.gz
done
cp $work/packed-ru/cuts.jsonl.gz $work/data/russian.jsonl.gz
[ -z "${DATA_ONLY:-}" ] || exit 0  # of runs/train_x_mini.sh

recipes=xy_tokenizer/xy_mini
stage $recipes/vocoder.yaml "$@"
stage $recipes/features.yaml towers="${WHISPER:-openai/whisper-tiny.en}" "$@"
for recipe in again decoder posttrain; do
  stage $recipes/$recipe.yaml "$@"
done
[ -d $work/release-training ] || xycodec export $work/posttrain $work/release-training --part-mb 15
xycodec convert $work/posttrain $work/release --store float16 --part-mb 15 --overwrite
echo "done: $work/release is the codec, $work/release-training goes on training"
