#!/usr/bin/env bash
# X-Codec's text-to-sound table again: GPT-2 medium over four flattened codebooks, 10 s from each caption of AudioCaps.
#   runs/reproduce_xcodec_sound.sh SOUNDS CAPTIONS REFERENCE WEIGHTS [OUTPUT]
# SOUNDS is what to learn from, JSON lines with audio and text (AudioCaps and WavCaps' AudioSet part, 400 h). CAPTIONS has
# id and caption of AudioCaps' test clips, one each, and REFERENCE their audio, named by id. WEIGHTS is a folder with
# Cnn14_16k_mAP=0.438.pth and vggish-10086976.pth. Needs GPUs (4, or as many as GPUS says) and the hub for the codec and
# CLAP; others: CODEC, CLAP. It goes on where it was interrupted; the two codecs' order is the target, not single values.
set -euo pipefail
usage="usage: runs/reproduce_xcodec_sound.sh SOUNDS CAPTIONS REFERENCE WEIGHTS [OUTPUT]"
sounds=${1:?$usage}
captions=${2:?$usage}
reference=${3:?$usage}
weights=${4:?$usage}
output=${5:-exp/reproduce-xcodec-sound}
codec=${CODEC:-x-codec-general}
clap=${CLAP:-laion/clap-htsat-unfused}
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"

xycodec tokenize "$sounds" --model "$codec" --output "$output/tokens"
xycodec tokens describe "$output/tokens" --clap "$clap"
torchrun --nproc-per-node "${GPUS:-4}" -m xycodec train lm/sound.yaml "data.train=[$output/tokens]" "data.valid=[]" \
  "output=$output/run"
python "$here/generate_audio.py" sound "$captions" "$output/run" "$output/generated" --codec "$codec" --clap "$clap"
xycodec evaluate-generation "$output/generated" "$reference" --captions "$captions" --clap "$clap" \
  --panns "$weights/Cnn14_16k_mAP=0.438.pth" --vggish "$weights/vggish-10086976.pth" \
  --expected "$here/expected/xcodec_sound.yaml" --title "X-Codec's text-to-sound table again" \
  --output "$output/evaluation"
