#!/usr/bin/env bash
# XY-Tokenizer's comparison of frozen encoders again: trained on Emilia, reconstruction on LibriSpeech test-clean.
#   runs/reproduce_xy_preliminary.sh EMILIA_CUTS LIBRISPEECH VERIFIER [NAME=VALUE or option of runs/reproduce.py]...
# Every row has its commands in runs/tables/xy_preliminary.yaml (--list prints them); what lacks a corpus or a GPU is skipped and
# named. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
usage="usage: runs/reproduce_xy_preliminary.sh EMILIA_CUTS LIBRISPEECH VERIFIER [NAME=VALUE]..."
[ $# -ge 3 ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
python "$here/reproduce.py" xy_preliminary "emilia_cuts=$1" "librispeech=$2" "verifier=$3" "${@:4}"
