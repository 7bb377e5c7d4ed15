#!/usr/bin/env bash
# Which tokens are easier for a language model, X-Codec's or an acoustic codec's? VALL-E in small on both, trained alike.
#   runs/lm_small.sh [KEY=VALUE]...    overrides go to all four trainings
# Needs exp/x-mini/release (runs/train_x_mini.sh) and flite. CODECS="NAME=FOLDER ..." compares others. WHISPER=FOLDER names a
# copy of Whisper base where there is no hub, HOURS=1 is the speech to learn from. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/stages.sh
export PATH="$PWD/.venv/bin:$PATH"
work=exp/lm-small
codecs=${CODECS:-x-mini=exp/x-mini/release/x-mini x-mini-baseline=exp/x-mini/release/x-mini-baseline}
mkdir -p $work

# One synthetic voice; other seeds say other sentences.
for part in speech:${HOURS:-1}:0 dev:0.1:1 test:0.1:2; do
  IFS=: read -r name hours seed <<< "$part"
  [ -f $work/$name/cuts.jsonl.gz ] || xycodec data synthesise $work/$name --hours "$hours" --voice slt --seed "$seed"
done
models=()
for pair in $codecs; do
  name=${pair%%=*} codec=${pair#*=}
  for part in speech dev; do
    [ -f $work/$name/$part/shards.jsonl ] || xycodec tokenize $work/$part/cuts.jsonl.gz -o $work/$name/$part --model "$codec"
  done
  for half in ar nar; do
    stage lm/small/valle_$half.yaml output=$work/$name/$half "data.train=[$work/$name/speech]" \
      "data.valid=[$work/$name/dev]" codec="$codec" "$@"
  done
  [ -d $work/$name/model ] || xycodec export $work/$name/ar $work/$name/model --nar $work/$name/nar
  models+=(--model "$name=$work/$name/model" --codec "$codec")
done
python runs/lm_bits.py $(for pair in $codecs; do echo "$work/${pair%%=*}"; done)
xycodec evaluate-tts $work/test/cuts.jsonl.gz -o $work/report "${models[@]}" --setting cross --limit 30 --seeds 0 \
  --recogniser "${WHISPER:-openai/whisper-base}"
echo "done: $work/report"
