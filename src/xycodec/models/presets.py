"""The configuration of every model that has a name."""

from xycodec.models.speech_tokenizer.config import SpeechTokenizerConfig
from xycodec.models.xcodec.config import XCODEC_CONFIGS, XCodecConfig
from xycodec.models.xy_tokenizer.config import CONFIGS, XYTokenizerConfig

CodecConfig = XYTokenizerConfig | XCodecConfig | SpeechTokenizerConfig

NAMED_CONFIGS: dict[str, CodecConfig] = {**CONFIGS, **XCODEC_CONFIGS}
