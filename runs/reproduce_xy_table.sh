#!/usr/bin/env bash
# XY-Tokenizer's main table again: reconstruction on LibriSpeech test-clean, and the ASR probe.
#   runs/reproduce_xy_table.sh LIBRISPEECH VERIFIER [NAME=VALUE or option of runs/reproduce.py]...
# Every row has its commands in runs/tables/xy_main.yaml (--list prints them); what lacks a corpus or a GPU is skipped and
# named. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
usage="usage: runs/reproduce_xy_table.sh LIBRISPEECH VERIFIER [NAME=VALUE]..."
[ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
python "$here/reproduce.py" xy_main "librispeech=$1" "verifier=$2" "${@:3}"
