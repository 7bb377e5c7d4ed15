#!/usr/bin/env bash
# X-Codec's table 2 again: phonetic ABX.
#   runs/reproduce_xcodec_abx.sh ITEMS AUDIO [NAME=VALUE or option of runs/reproduce.py]...
# Every row has its commands in runs/tables/xcodec_abx.yaml (--list prints them); what lacks a corpus or a GPU is skipped and
# named. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
usage="usage: runs/reproduce_xcodec_abx.sh ITEMS AUDIO [NAME=VALUE]..."
[ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
python "$here/reproduce.py" xcodec_abx "items=$1" "audio=$2" "${@:3}"
