#!/usr/bin/env bash
# X-Codec's reconstruction table again: 1,000 utterances of LibriTTS test-clean, drawn by seed 0.
#   runs/reproduce_xcodec_reconstruction.sh LIBRITTS [OUTPUT]
# LIBRITTS is the unpacked corpus. Needs the hub (checkpoint hf-audio/xcodec-hubert-librispeech with 1 and 8 codebooks)
# and, for UTMOS, what `xycodec evaluate --opinion utmos` asks for; a GPU makes it quick. Which utterances the paper took
# is not known, nor which of the published checkpoints it measured. Run it again and it goes on.
set -euo pipefail
speech=${1:?usage: runs/reproduce_xcodec_reconstruction.sh LIBRITTS [OUTPUT]}
output=${2:-exp/reproduce-xcodec-reconstruction}
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"

xycodec evaluate "libritts:test-clean:$speech" --limit 1000 --seed 0 \
  --codec xcodec-hubert-librispeech-1 --codec xcodec-hubert-librispeech-8 --codec dac-16khz-8 --codec opus-6k \
  --metrics dac_mel_distance,normalised_stft_distance,stft_distance,mel_distance,stoi,pesq_wb \
  --opinion utmos \
  --expected "$here/expected/xcodec_reconstruction.yaml" --title "X-Codec's reconstruction table again" \
  --output "$output"
