"""Training recipes: what a YAML file in `configs/` may say. Defaults are the paper's where it names a value."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from xycodec.io.config import Config, Decay, Probability
from xycodec.models.config import TowerConfig
from xycodec.models.xcodec.config import SelfSupervisedConfig, XCodecConfig
from xycodec.models.xy_tokenizer.config import LanguageModelConfig, VocosConfig, XYTokenizerConfig
from xycodec.train.config import OptimizerConfig, RunConfig


class PretrainingLoss(Config):
    """Weights of the losses; 0 leaves one out."""

    asr: NonNegativeFloat = 20.0
    mel: NonNegativeFloat = 15.0
    commitment: NonNegativeFloat = 1.0
    features: NonNegativeFloat = 0.0
    """Distance of what the vocoder reads from the clip's log-mel; cheap, since no audio is made for it. Not the
    paper's: for a vocoder that has learned from log-mels alone (stage `vocoder`)."""
    states: NonNegativeFloat = 0.0
    """Relative distance of what the frozen semantic tower hears in those features from what it hears in the clip's
    log-mel: keeps words that a distance of log-mels blurs. Not the paper's; needs `features`."""


def _require_a_loss(weights: Config) -> None:
    if not any(weights.model_dump().values()):
        raise ValueError("loss: every weight is 0: give at least one")


def _require_teacher(model: XYTokenizerConfig) -> None:
    if model.semantic_encoder is None:
        raise ValueError("loss.states: the semantic tower compares, and the model has none: set it to 0")


class PretrainRecipe(RunConfig):
    """X-shaped pre-training: one quantizer, read by the acoustic decoder and by a language model."""

    stage: Literal["pretrain"]
    model: XYTokenizerConfig
    towers: str | None = "openai/whisper-small"
    """The Whisper whose encoder both towers start from, a hub id or a folder; or a run or checkpoint of stage
    `recognise`, whose tower the semantic one starts from, and the acoustic one if it is of that size; null starts at
    random. With `start: linear`, which fills the acoustic tower, it is the semantic one's alone."""
    freeze_semantic: bool = True
    start: Literal["plain", "linear"] = "plain"
    """How what starts at random does: as torch would, or as a linear codec fitted to the data (not in the paper)."""
    weights: str | None = None
    """A run, checkpoint or codec whose weights to start from, instead of `towers`."""
    vocos: str | None = None
    """A run, checkpoint or codec whose vocoder to start from, whatever the rest starts from."""
    hear_seconds: PositiveFloat | None = None
    """Audio is made of so much of each clip, from a random place, for the mel loss; null: of all of it. Most of a
    step's time goes into audio, so that more clips are seen."""
    mel_reaches: Literal["all", "vocoder"] = "all"
    """What learns from the mel loss. Through a vocoder that is still learning, other parts get noise from it, and
    learn better from `loss.features` alone."""
    positions: Literal["first", "random"] = "first"
    """Where a batch's clips stand in the window: at its beginning, or anywhere, so that clips shorter than the window
    teach all of its positions."""
    lm: LanguageModelConfig | None = LanguageModelConfig()
    loss: PretrainingLoss = PretrainingLoss()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _listener(self) -> "PretrainRecipe":
        if self.loss.asr and self.lm is None:
            raise ValueError("loss.asr needs a language model: give lm, or set loss.asr to 0")
        _require_a_loss(self.loss)
        if self.start == "linear" and self.weights is not None:
            raise ValueError("start: linear would undo what weights gives: set one of the two to plain or null")
        if self.loss.states:
            _require_teacher(self.model)
            if not self.freeze_semantic or not self.loss.features:
                raise ValueError("loss.states needs freeze_semantic, and a weight for loss.features")
        if self.mel_reaches == "vocoder" and self.loss.mel and not self.loss.features:
            raise ValueError("mel_reaches: with vocoder the decoder learns from loss.features alone: give it a weight")
        return self


class VocoderRecipe(RunConfig):
    """The vocoder alone, from log-mels of the data: a start for `vocos` of pre-training (not in the paper)."""

    stage: Literal["vocoder"]
    model: XYTokenizerConfig
    weights: str | None = None
    """A run, checkpoint or codec whose vocoder to start from; null: at random."""
    optimizer: OptimizerConfig = OptimizerConfig()


class PosttrainingLoss(Config):
    """Weights of the generator's losses; 0 leaves one out."""

    mel: NonNegativeFloat = 15.0
    feature: NonNegativeFloat = 1.0
    """Feature matching: of what discriminators make of decoded and of true audio."""
    adversarial: NonNegativeFloat = 1.0
    log_mel: NonNegativeFloat = 0.0
    """Distance of what the vocoder reads from the clip's log-mel, as `features` of pre-training (not the paper's)."""
    states: NonNegativeFloat = 0.0
    """Relative distance of what the frozen semantic tower hears in the decoded audio from what it hears in the true
    audio (not the paper's)."""


class DiscriminatorsConfig(Config):
    """Which families of discriminators there are, and how wide (spec section 9.1)."""

    period: bool = True
    scale: bool = True
    spectrogram: bool = True
    channels: PositiveInt = 32
    """A multiple of 4; 32 gives the published sizes."""


class PosttrainRecipe(RunConfig):
    """Y-shaped post-training: encoder and quantizer frozen, the decoder against discriminators."""

    stage: Literal["posttrain"]
    weights: str
    """A run, checkpoint or codec to start from: a name, folder, file or hub id."""
    output_sample_rate: Literal[16000, 24000, 32000] | None = None
    """Rate of the decoded audio (default: as in `weights`). A new rate gets a new vocoder head."""
    vocos: VocosConfig | None = None
    """Another vocoder than that of `weights`; it starts at random where shapes differ."""
    model_id: str | None = None
    discriminators: DiscriminatorsConfig = DiscriminatorsConfig()
    keep_discriminators: bool = True
    """Whether to go on with the discriminators of `weights`, if it has any."""
    hear_seconds: PositiveFloat | None = None
    """Discriminators and mel loss hear so much of each clip, from a random place; null: all of it."""
    positions: Literal["first", "random"] = "first"
    """Where a batch's clips stand in the window, as in pre-training."""
    loss: PosttrainingLoss = PosttrainingLoss()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4)

    @model_validator(mode="after")
    def _no_shards(self) -> "PosttrainRecipe":
        if self.engine.kind == "fsdp2":
            raise ValueError("engine.kind: post-training has two optimizers and runs on ddp or single")
        _require_a_loss(self.loss)
        return self


class XCodecLoss(Config):
    """Weights of the generator's losses; 0 leaves one out. `semantic` has no meaning to a model without that branch."""

    adversarial: NonNegativeFloat = 1.0
    feature: NonNegativeFloat = 20.0
    stft: NonNegativeFloat = 1.0
    subband_stft: NonNegativeFloat = 1.0
    mel: NonNegativeFloat = 0.0
    """Of log-mels; the published code has a weight of 45 where it is on."""
    waveform: NonNegativeFloat = 0.0
    """Of samples ([choice]: not in the paper): a short run finds the voice by it, which else comes late."""
    commitment: NonNegativeFloat = 1.0
    semantic: NonNegativeFloat = 100.0

    @model_validator(mode="after")
    def _heard(self) -> "XCodecLoss":
        if not any(weight for name, weight in self if name not in ("commitment", "semantic")):
            raise ValueError("the decoder has none: give stft, subband_stft, mel, waveform or another one a weight")
        return self


class FrequencyDiscriminatorConfig(Config):
    """How wide X-Codec's discriminator is (X-Codec's spec, section 7.1)."""

    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 512
    """A multiple of 8; 512 gives the published size."""


class XCodecOptimizerConfig(OptimizerConfig):
    """As published, but for the schedule (X-Codec's spec, section 7)."""

    lr: PositiveFloat = 2e-4
    betas: tuple[Decay, Decay] = (0.8, 0.99)
    eps: PositiveFloat = 1e-6
    warmup_steps: NonNegativeInt = 0
    final_lr: Probability = 0.9
    """The published rate loses a thousandth an epoch: 400,000 steps of 64 clips of LibriSpeech leave as much."""
    clip: PositiveFloat | None = 2.0


class XCodecRecipe(RunConfig):
    """X-Codec, or its acoustic baseline, against discriminators from the first step (X-Codec's spec, section 7)."""

    stage: Literal["xcodec"]
    model: XCodecConfig
    semantic_weights: str | None = "facebook/hubert-base-ls960"
    """Whose self-supervised model the frozen semantic one is: a HuBERT or WavLM of Transformers, a hub id or a folder;
    or an X-Codec, its run or a checkpoint of it. null: at random; a model without a semantic one has to have null."""
    weights: str | None = None
    """A run, checkpoint or codec whose weights to start from, all of them: `semantic_weights` is not read then."""
    keep_discriminators: bool = True
    """Whether to go on with the discriminators of `weights`, if it has any."""
    n_q: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 4, 8)
    """Each step runs so many of the codebooks, one of these numbers at random, the same on all processes."""
    start: Literal["plain", "scaled"] = "plain"
    """How the acoustic half starts: as torch would (published), or with convolutions that keep the size of what they
    read ([choice]). Biases drown speech in the plain one, which takes a short run too long to undo."""
    quantize_from: NonNegativeInt = 0
    """Before that step latents pass the quantizer by ([choice], published: 0), so that codebooks start from latents
    that mean something."""
    discriminators: FrequencyDiscriminatorConfig = FrequencyDiscriminatorConfig()
    loss: XCodecLoss = XCodecLoss()
    optimizer: XCodecOptimizerConfig = XCodecOptimizerConfig()
    discriminator_optimizer: XCodecOptimizerConfig = XCodecOptimizerConfig()

    @model_validator(mode="after")
    def _fitting(self) -> "XCodecRecipe":
        if self.engine.kind == "fsdp2":
            raise ValueError("engine.kind: X-Codec's training has two optimizers and runs on ddp or single")
        if self.model.semantic is None and self.semantic_weights is not None:
            raise ValueError("semantic_weights: model.semantic is null, so nothing takes them: set them to null")
        if self.weights is not None and self.start != "plain":
            raise ValueError("start: what it makes, weights would replace: set one of the two to plain or null")
        if max(self.n_q) > self.model.quantizer.n_q:
            raise ValueError(f"n_q: {max(self.n_q)} codebooks of {self.model.quantizer.n_q}: ask for no more than that")
        return self


class MaskingConfig(Config):
    """Stretches of time and of frequency that are hidden from a recogniser in training (SpecAugment, Park 2019)."""

    time_masks: NonNegativeInt = 2
    time_frames: PositiveInt = 40
    """The longest one, in log-mel frames of 10 ms."""
    time_share: Probability = 0.1
    """The longest one as a share of its clip: one that takes a whole word teaches guessing."""
    frequency_masks: NonNegativeInt = 2
    frequency_bins: PositiveInt = 15
    """The widest one, in mel bins."""


class RecogniseRecipe(RunConfig):
    """A tower learns to recognise characters (CTC), for a codec's semantic tower to start from."""

    stage: Literal["recognise"]
    tower: TowerConfig
    n_mels: PositiveInt = 80
    window_frames: PositiveInt = 375
    """Code frames of 80 ms, as many as the codec's window has."""
    characters: Annotated[str, Field(min_length=1)] | None = None
    """What may be said, in lower case, the space with it; null: what the training texts hold. Others are left out."""
    masking: MaskingConfig = MaskingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _no_average(self) -> "RecogniseRecipe":
        if self.ema is not None:
            raise ValueError("ema: only a codec's weights are averaged: leave it out")
        return self


class SpanMaskingConfig(Config):
    """Which frames of 20 ms are hidden from a HuBERT that is to guess their labels."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.08
    """So many of a clip's frames, and one at least, begin a span; spans may overlap."""
    frames: PositiveInt = 10
    """Of a span."""


class HubertLoss(Config):
    """Weights of the losses; 0 leaves one out."""

    masked: NonNegativeFloat = 1.0
    """Of labels of hidden frames."""
    unmasked: NonNegativeFloat = 0.0
    """Of labels of the other frames."""
    features: NonNegativeFloat = 10.0
    """Mean square of what the convolutions give."""


class HubertOptimizerConfig(OptimizerConfig):
    """X-Codec's paper's rate and schedule (X-Codec's spec, section 7.2); the rest is HuBERT's."""

    lr: PositiveFloat = 3e-4
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    schedule: Literal["cosine", "inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: NonNegativeInt = 32_000
    clip: PositiveFloat | None = 10.0


class HubertRecipe(RunConfig):
    """A HuBERT learns to guess codes of hidden frames, for X-Codec to read (HuBERT's paper; X-Codec's spec, 7.2)."""

    stage: Literal["hubert"]
    model: SelfSupervisedConfig = SelfSupervisedConfig()
    codebook_size: PositiveInt = 1024
    """How many labels a layer has, as `xycodec data targets` told."""
    codebooks: PositiveInt = 1
    """So many layers of labels are learned, the first ones."""
    masking: SpanMaskingConfig = SpanMaskingConfig()
    dropout: Probability = 0.1
    """Of what the transformer reads, of its attention and of what its layers add."""
    layer_drop: Probability = 0.05
    """How often a layer is left out."""
    feature_gradient: Probability = 0.1
    """Share of the gradient that reaches the convolutions."""
    label_dim: PositiveInt = 256
    """Width in which a frame is compared with the labels."""
    temperature: PositiveFloat = 0.1
    """By which their cosines are divided."""
    loss: HubertLoss = HubertLoss()
    optimizer: HubertOptimizerConfig = HubertOptimizerConfig()

    @model_validator(mode="after")
    def _fitting(self) -> "HubertRecipe":
        if self.data.in_memory:
            raise ValueError("data.in_memory: labels are not kept in the device's memory: set it to false")
        if self.model.kind != "hubert":
            raise ValueError(f"model.kind: {self.model.kind} is not trained here: set it to hubert")
        if self.data.augment.speed:
            raise ValueError("data.augment.speed: it would move the audio away from its labels: set it to 0")
        if self.ema is not None:
            raise ValueError("ema: only a codec's weights are averaged: leave it out")
        if self.engine.kind == "fsdp2":
            raise ValueError("engine.kind: HuBERT's layers are Transformers', which are not sharded: use ddp or single")
        if self.engine.compile:
            raise ValueError(
                "engine.compile: HuBERT's layers, which are Transformers', are not compiled: set it to false"
            )
        if not (self.loss.masked or self.loss.unmasked):
            raise ValueError("loss: nothing is guessed: give masked or unmasked a weight")
        return self


Recipe = PretrainRecipe | PosttrainRecipe | VocoderRecipe | RecogniseRecipe | XCodecRecipe | HubertRecipe
STAGES: dict[str, type[Recipe]] = {
    "pretrain": PretrainRecipe,
    "posttrain": PosttrainRecipe,
    "recognise": RecogniseRecipe,
    "vocoder": VocoderRecipe,
    "xcodec": XCodecRecipe,
    "hubert": HubertRecipe,
}
