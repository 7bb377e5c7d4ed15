#!/usr/bin/env bash
# X-Codec's text-to-speech table again: VALL-E on LibriTTS, spoken on LibriSpeech test-clean from 3 s of each utterance.
#   runs/reproduce_xcodec_tts.sh LIBRITTS LIBRISPEECH VERIFIER [OUTPUT]
# LIBRITTS and LIBRISPEECH are unpacked corpora, VERIFIER is UniSpeech's wavlm_large_finetune.pth. Needs GPUs (8, or as many
# as GPUS says), espeak for phonemes, and the hub: the codec, hubert-large-ls960-ft, what `--opinion utmos` asks for. Another
# codec: CODEC and NAME. Stages go on where they were interrupted; the orderings are the target, not single values.
set -euo pipefail
usage="usage: runs/reproduce_xcodec_tts.sh LIBRITTS LIBRISPEECH VERIFIER [OUTPUT]"
libritts=${1:?$usage}
librispeech=${2:?$usage}
verifier=${3:?$usage}
output=${4:-exp/reproduce-xcodec-tts}
codec=${CODEC:-x-codec-hubert}
name=${NAME:-x-codec}
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"

store() { # name of the store, parts of LibriTTS
  local cuts=()
  for part in "${@:2}"; do
    cuts+=("$output/manifests/$part.jsonl.gz")
    [ -e "${cuts[-1]}" ] && continue
    lhotse prepare libritts -p "$part" "$libritts" "$output/manifests"
    lhotse cut simple -r "$output/manifests/libritts_recordings_$part.jsonl.gz" \
      -s "$output/manifests/libritts_supervisions_$part.jsonl.gz" "${cuts[-1]}"
  done
  xycodec tokenize "${cuts[@]}" --model "$codec" --output "$output/tokens/$1"
}
store train train-clean-100 train-clean-360 train-other-500
store dev dev-clean

stage() { # recipe, folder of the run
  torchrun --nproc-per-node "${GPUS:-8}" -m xycodec train "lm/$1.yaml" "data.train=[$output/tokens/train]" \
    "data.valid=[$output/tokens/dev]" "output=$output/$2"
}
stage valle_ar ar
stage valle_nar nar
[ -e "$output/valle" ] || xycodec export "$output/ar" "$output/valle" --nar "$output/nar"

xycodec evaluate-tts "librispeech:test-clean:$librispeech" --model "$name=$output/valle" --codec "$codec" \
  --similarity "$verifier" --recogniser facebook/hubert-large-ls960-ft --opinion utmos --seeds 0,1,2 \
  --expected "$here/expected/xcodec_tts.yaml" --title "X-Codec's text-to-speech table again" \
  --output "$output/evaluation"
