#!/usr/bin/env bash
# Pre-training with a real language model on single words: docs/smollm.md has its numbers.
#   runs/smollm.sh SPEECH FOLDER [RECIPE]
# SPEECH: train.jsonl and its recordings; FOLDER: data, run and what is heard; RECIPE: smollm (default) or smollm_towers.
# LM is the language model, a hub id or a folder. What more a recipe's setting should be: SET="towers=whisper-tiny.en".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
speech=$1 folder=$2 recipe=${3:-smollm}
mkdir -p "$folder"
python "$here/smollm_data.py" "$speech" "$folder"
for part in words dev_words; do
    xycodec data import "$folder/$part.jsonl" "$folder/$part.cuts.jsonl.gz"
done
# shellcheck disable=SC2086  # several settings
xycodec train "xy_tokenizer/$recipe.yaml" --resume "lm.source=${LM:-HuggingFaceTB/SmolLM2-135M-Instruct}" "output=$folder/$recipe" \
    "data.train=[$folder/words.cuts.jsonl.gz]" "data.valid=[$folder/dev_words.cuts.jsonl.gz]" ${SET:-}
python "$here/hear.py" "$folder/$recipe" "$folder/dev_words.cuts.jsonl.gz" --context "$folder/words.cuts.jsonl.gz" > "$folder/$recipe.json"
python "$here/plot_curves.py" "$folder/$recipe" --output "$folder/$recipe.png"
