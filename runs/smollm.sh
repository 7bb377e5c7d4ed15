#!/usr/bin/env bash
# Pre-training with real towers and a real language model, in an hour of one core: docs/smollm.md has its numbers.
#   runs/smollm.sh SPEECH FOLDER
# SPEECH: train.jsonl and its recordings; FOLDER: data, run and what is heard.
# Where no hub can be reached, name folders: TOWERS, LM, and JUDGE, which only hears the held-out orders.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
speech=$1 folder=$2
towers=${TOWERS:-openai/whisper-tiny.en} judge=${JUDGE:-openai/whisper-base} lm=${LM:-HuggingFaceTB/SmolLM2-135M-Instruct}
mkdir -p "$folder"
python "$here/smollm_data.py" "$speech" "$folder"
for part in words dev_words orders dev_orders; do
    xycodec data import "$folder/$part.jsonl" "$folder/$part.cuts.jsonl.gz"
done
# Orders come without texts. Those to learn are what the towers' own Whisper hears, held-out ones what another does.
xycodec data transcribe "$folder/orders.cuts.jsonl.gz" "$folder/orders.heard.jsonl.gz" --recogniser "$towers"
xycodec data transcribe "$folder/dev_orders.cuts.jsonl.gz" "$folder/dev_orders.heard.jsonl.gz" --recogniser "$judge"
xycodec train xy_tokenizer/smollm.yaml --resume "towers=$towers" "lm.source=$lm" "output=$folder/run" \
    "data.train=[{path: $folder/words.cuts.jsonl.gz, weight: 0.9}, {path: $folder/orders.heard.jsonl.gz, weight: 0.1}]" \
    "data.valid=[$folder/dev_orders.heard.jsonl.gz, $folder/dev_words.cuts.jsonl.gz]"
python "$here/hear.py" "$folder/run" "$folder/dev_orders.heard.jsonl.gz" --context "$folder/orders.heard.jsonl.gz" > "$folder/heard_orders.json"
python "$here/hear.py" "$folder/run" "$folder/dev_words.cuts.jsonl.gz" --context "$folder/words.cuts.jsonl.gz" > "$folder/heard_words.json"
python "$here/plot_curves.py" "$folder/run" --output "$folder/curves.png"
