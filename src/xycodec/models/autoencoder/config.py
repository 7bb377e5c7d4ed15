"""Configuration of an autoencoder: a frozen speech encoder and the decoder that learns to invert it."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, PositiveInt, Tag

from xycodec.io.config import Config
from xycodec.models.config import TowerConfig
from xycodec.models.xcodec.config import SelfSupervisedConfig
from xycodec.models.xy_tokenizer.config import VocosConfig


class FrozenWhisperConfig(TowerConfig):
    """Size of a frozen Whisper encoder, and two parts of it that may be taken out.

    SimWhisper-Codec reports that features are easier to invert without them.
    """

    kind: Literal["whisper"]
    n_mels: PositiveInt = 80
    use_positions: bool = True
    """Whether positions are added to the transformer's input."""
    stem_gelu: bool = True
    """Whether a GELU follows each of the two convolutions."""


class FrozenSpeechModelConfig(SelfSupervisedConfig):
    """Size of a frozen HuBERT or WavLM, whose last layer is read."""

    form: Literal["base", "large"] = "base"
    """`large` norms before each layer instead of after it, has a norm in every convolution, and hears audio of mean 0
    and variance 1."""
    conv_bias: bool = False
    """Whether the convolutions have a bias: those of HuBERT large do."""

    @property
    def more(self) -> dict[str, Any]:
        """The settings of Transformers that `form` and `conv_bias` stand for."""
        large = self.form == "large"
        return {
            "feat_extract_norm": "layer" if large else "group",
            "do_stable_layer_norm": large,
            "conv_bias": self.conv_bias,
        }


def _kind_of(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "(whisper)" if kind == "whisper" else "(speech model)"


FrozenEncoderConfig = Annotated[
    Annotated[FrozenWhisperConfig, Tag("(whisper)")] | Annotated[FrozenSpeechModelConfig, Tag("(speech model)")],
    Discriminator(_kind_of),
]


class AutoencoderConfig(Config):
    """A frozen encoder and XY-Tokenizer's acoustic decoder after it, at 16 kHz."""

    encoder: FrozenEncoderConfig
    decoder: TowerConfig
    """The transformer of the acoustic decoder."""
    vocos: VocosConfig = VocosConfig()
    window_frames: PositiveInt = 1500
    """Frames of 20 ms that a clip has at most."""
    decoder_parameters: PositiveInt
    """Trainable parameters, which may differ by 3 %: what makes decoders of different encoders equal."""
