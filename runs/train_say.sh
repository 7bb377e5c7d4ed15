#!/usr/bin/env bash
# A small text-to-speech model on xy-mini's codes, from nothing to the folder that `xycodec say --model` takes.
#   runs/train_say.sh [KEY=VALUE]...     overrides go to the recipe, such as minutes=60
# The voice is flite's slt (apt-get install flite). SPEECH=FOLDER with a train.jsonl adds the sentences of its transcripts.
# Interrupt it at any time: run it again and it goes on. In the background: nohup nice -n 10 runs/train_say.sh &
# On a processor without bfloat16 units: engine.precision=float32.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
work=exp/say
hours=${HOURS:-12}
mkdir -p $work

[ -f $work/texts.txt ] || python runs/say_texts.py ${SPEECH:+"$SPEECH/train.jsonl"} > $work/texts.tmp
[ -f $work/texts.txt ] || mv $work/texts.tmp $work/texts.txt
# Other seeds say other sentences: the last ones are for tests alone.
[ -f $work/speech/cuts.jsonl.gz ] || xycodec data synthesise $work/speech --hours "$hours" --voice slt --texts $work/texts.txt
[ -f $work/dev/cuts.jsonl.gz ] || xycodec data synthesise $work/dev --hours 0.1 --voice slt --seed 1
[ -f $work/test/cuts.jsonl.gz ] || xycodec data synthesise $work/test --hours 0.15 --voice slt --seed 2
for part in speech dev test; do
  [ -f $work/store/$part/shards.jsonl ] || xycodec tokenize $work/$part/cuts.jsonl.gz -o $work/store/$part --model xy-mini
done
xycodec train lm/say.yaml --resume "$@"
[ -d $work/model ] || xycodec export $work/run $work/model --store float16
echo "done: xycodec say 'good morning' -o out.wav --model $work/model"
