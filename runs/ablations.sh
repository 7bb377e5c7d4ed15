#!/usr/bin/env bash
# One family of XY-Tokenizer's ablations at debug size, in minutes of a CPU, beside the published direction.
#   runs/ablations.sh FAMILY FOLDER [option of runs/reproduce.py]...
# FAMILY: parameters, "language model", channel, "tower size", ours; distillation is SpeechTokenizer's. FOLDER has train.jsonl
# and dev.jsonl. Sizes are a sixteenth in width and a twelfth in depth, weights random: it shows that recipes run and
# what they differ in, not the paper's result. --steps N (default 300).
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: runs/ablations.sh FAMILY FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH" HF_HUB_OFFLINE=1
table=xy_ablations
[ "$1" = distillation ] && table=xy_main
python "$here/reproduce.py" "$table" --family "$1" --debug "$2" "${@:3}"
