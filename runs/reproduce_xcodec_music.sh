#!/usr/bin/env bash
# X-Codec's music continuation table again: GPT-2 medium over the first codebook, 30 s after 10 s of MUSDB18.
#   runs/reproduce_xcodec_music.sh MUSIC MUSDB18 WEIGHTS [OUTPUT]
# MUSIC is what to learn from (folder, manifest or cuts; the paper has 100,000 h), MUSDB18 the test set as WAV files
# (mixture.wav of MUSDB18-HQ), WEIGHTS a folder with Cnn14_16k_mAP=0.438.pth, vggish-10086976.pth and MERT-v1-95M. Needs GPUs
# (8, or as many as GPUS says) and the hub for the codec; another one: CODEC. It goes on where it was interrupted. Crops are
# drawn by seed 0 and listed in the output; the two codecs' order is the target, not single values.
set -euo pipefail
usage="usage: runs/reproduce_xcodec_music.sh MUSIC MUSDB18 WEIGHTS [OUTPUT]"
music=${1:?$usage}
musdb=${2:?$usage}
weights=${3:?$usage}
output=${4:-exp/reproduce-xcodec-music}
codec=${CODEC:-x-codec-general}
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$here/../.venv/bin:$PATH"

xycodec tokenize "$music" --model "$codec" --output "$output/tokens"
torchrun --nproc-per-node "${GPUS:-8}" -m xycodec train lm/music.yaml "data.train=[$output/tokens]" "data.valid=[]" \
  "output=$output/run"
python "$here/generate_audio.py" music "$musdb" "$output/run" "$output/audio" --codec "$codec"
xycodec evaluate-generation "$output/audio/generated" "$output/audio/reference" \
  --panns "$weights/Cnn14_16k_mAP=0.438.pth" --vggish "$weights/vggish-10086976.pth" --mert "$weights/MERT-v1-95M" \
  --expected "$here/expected/xcodec_music.yaml" --title "X-Codec's music continuation table again" \
  --output "$output/evaluation"
