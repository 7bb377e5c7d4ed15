#!/usr/bin/env bash
# XY-Tokenizer's tables again: reconstruction on LibriSpeech test-clean, and the ASR probe.
#   runs/reproduce_xy_table.sh LIBRISPEECH VERIFIER [OUTPUT]
# LIBRISPEECH is the unpacked corpus (test-clean; train-clean-100 and dev-clean for the probe). VERIFIER is UniSpeech's
# wavlm_large_finetune.pth, which the papers measure SIM with. Needs a GPU for the probe and the models, and the hub:
#   checkpoints fdugyt/XY_Tokenizer, descript/dac_24khz (2 and 8 codebooks), kyutai/mimi (8 and 32)
# Interrupt it at any time: run it again and it goes on. Codecs of the table that no maintained package loads
# (BigCodec, SpeechTokenizer, Baichuan, WavTokenizer) are in the report as published points only.
set -euo pipefail
speech=${1:?usage: runs/reproduce_xy_table.sh LIBRISPEECH VERIFIER [OUTPUT]}
verifier=${2:?usage: runs/reproduce_xy_table.sh LIBRISPEECH VERIFIER [OUTPUT]}
output=${3:-exp/reproduce-xy-table}
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"

xycodec evaluate "librispeech:test-clean:$speech" \
  --codec fdugyt/XY_Tokenizer --codec dac-2 --codec dac-8 --codec mimi-8 --codec mimi-32 --codec opus-6k \
  --metrics stoi,pesq_wb,pesq_nb,mel_distance,si_sdr \
  --similarity "$verifier" --recogniser facebook/hubert-large-ls960-ft \
  --expected "$here/expected/xy_table.yaml" --title "XY-Tokenizer's table again" \
  --output "$output/reconstruction"

# Published word error rates of the probe: 0.13 of XY-Tokenizer, 0.98 and 0.74 of DAC, 0.28 of Mimi.
probe() { # codec, published WER
  xycodec probe "librispeech:train-clean-100:$speech" "librispeech:dev-clean:$speech" \
    --model "$1" --expected "$2" --steps 400000 --output "$output/probe/${1//\//-}"
}
probe fdugyt/XY_Tokenizer 0.13
probe dac-2 0.98
probe dac-8 0.74
probe mimi-8 0.28
probe mimi-32 0.28
