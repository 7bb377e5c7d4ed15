"""The models that `load_codec` knows by name, and where their weights are."""

from dataclasses import dataclass

DEFAULT = "xy-mini"
RANDOM = "xy-random"


@dataclass(frozen=True)
class ModelInfo:
    """A model that has a name, and where its weights are."""

    name: str
    source: str
    """Source of its weights: `bundled`, `seeded` or a hub id."""
    aliases: tuple[str, ...]
    """Other hub ids that hold the same model."""
    description: str
    files: tuple[str, ...] = ()
    """Names of published files that hold the same model among others, such as the authors' in ZhenYe234/xcodec."""


MODELS = {
    info.name: info
    for info in (
        ModelInfo(
            DEFAULT,
            "bundled",
            (),
            "the default: small, comes with the package; 7.4 h of speech in six languages, 16 kHz output",
        ),
        ModelInfo(
            "xy-tokenizer",
            "fdugyt/XY_Tokenizer",
            (),
            "the paper's model: Emilia, 16 kHz output",
        ),
        ModelInfo(
            "xy-tokenizer-24k",
            "fnlp/XY_Tokenizer_TTSD_V0",
            (),
            "of MOSS-TTSD V0: Emilia and internal data, 24 kHz output",
        ),
        ModelInfo(
            "xy-tokenizer-32k",
            "OpenMOSS-Team/MOSS_TTSD_tokenizer",
            ("OpenMOSS-Team/MOSS_TTSD_tokenizer_hf", "fnlp/XY_Tokenizer_TTSD_V0_32k_hf"),
            "same codes as the 24 kHz one, 32 kHz output",
        ),
        ModelInfo(
            "x-codec-hubert",
            "hf-audio/xcodec-hubert-librispeech",
            (),
            "X-Codec of the paper: HuBERT base, LibriSpeech",
            ("xcodec_speech_hubert_librispeech.pth",),
        ),
        ModelInfo(
            "x-codec-wavlm",
            "hf-audio/xcodec-wavlm-mls",
            (),
            "X-Codec: WavLM base+, English of Multilingual LibriSpeech",
            ("xcodec_speech_wavlm_mls.pth",),
        ),
        ModelInfo(
            "x-codec-wavlm-more",
            "hf-audio/xcodec-wavlm-more-data",
            (),
            "X-Codec: WavLM base+, the same and internal data",
            ("xcodec_speech_wavlm_more_data.pth",),
        ),
        ModelInfo(
            "x-codec-general",
            "hf-audio/xcodec-hubert-general",
            (),
            "X-Codec of the paper for speech, music and sound: HuBERT of general audio",
            ("xcodec_hubert_general_audio.pth",),
        ),
        ModelInfo(
            "x-codec-general-balanced",
            "hf-audio/xcodec-hubert-general-balanced",
            (),
            "x-codec-general with more balanced data",
            ("xcodec_hubert_general_audio_v2.pth",),
        ),
        ModelInfo(
            RANDOM,
            "seeded",
            (),
            "untrained random weights, to try the pipeline: its audio is noise",
        ),
    )
}


SEVERAL = {"ZhenYe234/xcodec": tuple(file for info in MODELS.values() for file in info.files)}
"""Hub repositories that hold several models, and their files: one has to be named."""


def of_repository(repo: str) -> str | None:
    """The name of the model that the hub repository `repo` holds, if it is a known one."""
    return next((info.name for info in MODELS.values() if repo in (info.source, *info.aliases)), None)


def of_file(name: str) -> str | None:
    """The name of the model in a published file called `name`, if it is a known one."""
    return next((info.name for info in MODELS.values() if name in info.files), None)
