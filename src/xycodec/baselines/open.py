"""Any codec by its name: ours, and those that ours are compared with."""

import os
import re
from pathlib import Path

from xycodec.baselines.bigcodec import load_bigcodec
from xycodec.baselines.classical import CODEC2_MODES, Codec2
from xycodec.baselines.opus import Opus
from xycodec.baselines.transformers_codec import load_transformers_codec
from xycodec.checkpoints.load import load_codec, resolve_device
from xycodec.errors import CheckpointError
from xycodec.io.hub import fetch
from xycodec.models.base import Codec
from xycodec.models.registry import MODELS

HUB_IDS = {
    "encodec": "facebook/encodec_24khz",
    "dac": "descript/dac_24khz",
    "dac-16khz": "descript/dac_16khz",
    "dac-24khz": "descript/dac_24khz",
    "dac-44khz": "descript/dac_44khz",
    "mimi": "kyutai/mimi",
    "xcodec": "hf-audio/xcodec-hubert-librispeech",
    "xcodec-hubert-librispeech": "hf-audio/xcodec-hubert-librispeech",
    "xcodec-wavlm-mls": "hf-audio/xcodec-wavlm-mls",
    "xcodec-wavlm-more-data": "hf-audio/xcodec-wavlm-more-data",
    "xcodec-hubert-general": "hf-audio/xcodec-hubert-general",
    "xcodec-hubert-general-balanced": "hf-audio/xcodec-hubert-general-balanced",
    "xcodec2": "HKUSTAudio/xcodec2-hf",
}
"""Short names of codecs of Transformers; `-N` after one is its number of codebooks, as papers write DAC-8."""

SPEECH_TOKENIZER = "fnlp/SpeechTokenizer:speechtokenizer_hubert_avg/SpeechTokenizer.pt"
"""Authors' checkpoint that papers compare with, called `speech-tokenizer`."""
BIGCODEC_REPO, BIGCODEC_FILE = "Alethia/BigCodec", "bigcodec.pt"
TRANSFORMERS, BIGCODEC = "hf:", "bigcodec"
KNOWN = (
    f"{', '.join(HUB_IDS)} (and -N for N codebooks), hf:ID_OR_FOLDER[:N], speech-tokenizer, bigcodec[:FILE], "
    f"opus-6k to opus-64k, "
    f"{', '.join(f'codec2-{mode}' for mode in CODEC2_MODES)}"
)
"""Names of what is not ours, in words."""


def open_codec(spec: str, *, device: str = "auto") -> Codec:
    """A codec in eval mode by its name.

    `spec`: `hf:ID_OR_FOLDER` or `hf:ID_OR_FOLDER:N`, a codec of Transformers with all or N codebooks; a name of
    `HUB_IDS`, as `mimi` or `mimi-8`; `speech-tokenizer` and `bigcodec`, of their authors' checkpoints, or
    `bigcodec:FILE`; `opus-Nk`, Opus at N kbit/s; `codec2-MODE`, as `codec2-1200`; or what
    `load_codec` takes. `device`: a torch device, or `auto` for CUDA, then MPS, then CPU.

    Raises CheckpointError, one line, if that gives no codec, and XycodecError if a program is missing.
    """
    place = resolve_device(device)
    codec = _baseline(spec)
    if codec is not None:
        return codec.to(place).eval()
    try:
        return load_codec(SPEECH_TOKENIZER if spec == "speech-tokenizer" else spec, device=device)
    except CheckpointError as error:
        if spec in MODELS or "/" in spec or os.path.exists(spec):
            raise
        raise CheckpointError(f"{error}; for comparison, {KNOWN}") from None


def _baseline(spec: str) -> Codec | None:
    if spec.startswith(TRANSFORMERS):
        source, n_q = _counted(spec.removeprefix(TRANSFORMERS), ":")
        return load_transformers_codec(source, n_q)
    name, n_q = _counted(spec, "-")
    for stem, count in ((spec, None), (name, n_q)):
        if stem in HUB_IDS:
            return load_transformers_codec(HUB_IDS[stem], count)
    if spec.partition(":")[0] == BIGCODEC:
        return _bigcodec(spec.partition(":")[2])
    if kbps := re.fullmatch(r"opus-(\d+)k", spec):
        return Opus(int(kbps[1]))
    if spec.startswith("codec2-"):
        mode = spec.removeprefix("codec2-").lower()
        if mode not in CODEC2_MODES:
            raise CheckpointError(f"{spec}: no mode of Codec 2; known are {', '.join(CODEC2_MODES)}")
        return Codec2(CODEC2_MODES[mode])
    return None


def _bigcodec(file: str) -> Codec:
    if file:
        return load_bigcodec(Path(file), f"bigcodec-{Path(file).stem}")
    return load_bigcodec(fetch(BIGCODEC_REPO, [BIGCODEC_FILE]) / BIGCODEC_FILE, BIGCODEC)


def _counted(text: str, separator: str) -> tuple[str, int | None]:
    """`dac-8` -> `dac` and 8; without a number at the end, the text and None."""
    stem, found, count = text.rpartition(separator)
    return (stem, int(count)) if found and count.isdecimal() else (text, None)
