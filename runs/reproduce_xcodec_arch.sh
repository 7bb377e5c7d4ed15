#!/usr/bin/env bash
# X-Codec's table 5 again: ARCH, each data set where it was unpacked (esc50=FOLDER ...).
#   runs/reproduce_xcodec_arch.sh [NAME=VALUE or option of runs/reproduce.py]...
# Every row has its commands in runs/tables/xcodec_arch.yaml (--list prints them); what lacks a corpus or a GPU is skipped and
# named. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
python "$here/reproduce.py" xcodec_arch "${@:1}"
