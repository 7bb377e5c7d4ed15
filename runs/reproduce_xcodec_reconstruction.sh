#!/usr/bin/env bash
# X-Codec's table 6 again: reconstruction of 1,000 utterances of LibriTTS.
#   runs/reproduce_xcodec_reconstruction.sh LIBRITTS [NAME=VALUE or option of runs/reproduce.py]...
# Every row has its commands in runs/tables/xcodec_reconstruction.yaml (--list prints them); what lacks a corpus or a GPU is skipped and
# named. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
usage="usage: runs/reproduce_xcodec_reconstruction.sh LIBRITTS [NAME=VALUE]..."
[ $# -ge 1 ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
python "$here/reproduce.py" xcodec_reconstruction "libritts=$1" "${@:2}"
