#!/usr/bin/env bash
# X-Codec's table 7 again: music continuation with four codebooks, from folders of generated and true music.
#   runs/reproduce_xcodec_music_four.sh [NAME=VALUE or option of runs/reproduce.py]...
# Every row has its commands in runs/tables/xcodec_music_four.yaml (--list prints them); what lacks a corpus or a GPU is skipped and
# named. Interrupt it at any time: run it again and it goes on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
python "$here/reproduce.py" xcodec_music_four "${@:1}"
