"""Training recipes: what a YAML file in `configs/` may say. Defaults are the paper's where it names a value."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from xycodec.config import (
    Config,
    TowerConfig,
    VocosConfig,
    XCodecConfig,
    XYTokenizerConfig,
)

Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if not span[0] <= span[1]:
        raise ValueError(f"{list(span)} is not a range: the first number is the smaller one")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_ordered)]
Factors = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]


# ---- data --------------------------------------------------------------------------------------


class Augmentation(Config):
    """How often a clip is changed, and within what range; every probability is 0 by default."""

    speed: Probability = 0.0
    speed_range: Factors = (0.9, 1.1)
    """Factor on the speed: duration and pitch change together."""
    pitch: Probability = 0.0
    pitch_range: Span = (-2.0, 2.0)
    """Semitones, at the same duration."""
    formant: Probability = 0.0
    formant_range: Factors = (0.87, 1.15)
    """Factor on the resonances, as of another speaker's mouth, at the same pitch and duration."""
    gain: Probability = 0.0
    gain_range: Span = (-12.0, 3.0)
    """Decibels; a clip is never pushed beyond full scale."""
    eq: Probability = 0.0
    eq_range: Span = (-6.0, 6.0)
    """Decibels of each of three peaking filters at random frequencies."""


class SourceConfig(Config):
    """A corpus: Lhotse cuts (`.jsonl`, `.jsonl.gz`), a Lhotse Shar folder, or WebDataset tars (a glob)."""

    path: str
    weight: PositiveFloat | None = None
    """Share of the draws. If one source has a weight, all must, and every source repeats without end."""


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[SourceConfig, BeforeValidator(_source)]


class DataConfig(Config):
    """What is read, and how it becomes batches."""

    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()
    clip_seconds: PositiveFloat = 30.0
    """The longest a clip may be."""
    crop: Literal["first", "random"] = "first"
    """Which part of a longer clip is taken."""
    batch_clips: PositiveInt = 4
    """Clips a process takes per micro-batch, at most."""
    batch_seconds: PositiveFloat | None = None
    """Seconds of audio a process takes per micro-batch, at most, padding included."""
    buckets: NonNegativeInt = 20
    """Clips of a batch come from one of so many ranges of duration; 0 mixes all."""
    shuffle_buffer: PositiveInt = 20_000
    min_seconds: NonNegativeFloat = 0.5
    """Shorter clips are left out."""
    silence_db: float = -60.0
    """A clip whose loudest sample lies below (dB of full scale) is skipped."""
    workers: NonNegativeInt = 4
    augment: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _weights_for_all(self) -> "DataConfig":
        given = [source.weight is not None for source in self.train]
        if any(given) and not all(given):
            raise ValueError("data.train: give every source a weight, or none")
        if not self.train:
            raise ValueError("data.train: name at least one source")
        if any(source.weight is not None for source in self.valid):
            raise ValueError("data.valid: sources are read once and have no weights")
        return self


# ---- optimisation ------------------------------------------------------------------------------


class OptimizerConfig(Config):
    """AdamW under a cosine schedule with warm-up (spec section 8)."""

    lr: PositiveFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    warmup_steps: NonNegativeInt = 2000
    final_lr: Probability = 0.1
    """Share of `lr` that is left at the last step."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient."""


class EngineConfig(Config):
    """How a step is computed, on how many processes (`torchrun` starts them)."""

    kind: Literal["auto", "single", "ddp", "fsdp2"] = "auto"
    """`auto`: DDP where there are several processes. `fsdp2` shards gradients and optimizer (ZeRO-2)."""
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "bf16"
    """Autocast of the networks; quantizer, inverse STFT and losses are float32 in either."""
    accumulate: PositiveInt = 1
    """Micro-batches per step."""
    compile: bool = False
    checkpoint_activations: bool = False


# ---- a run -------------------------------------------------------------------------------------


class ValidationConfig(Config):
    """When and on how much of `data.valid` a run is measured."""

    every: PositiveInt = 5000
    """Steps."""
    clips: PositiveInt = 200
    """Clips at most, the first ones."""
    listen: NonNegativeInt = 4
    """Clips whose audio and spectrograms go to TensorBoard."""
    transcribe: NonNegativeInt = 32
    """Clips the language model transcribes for its word error rate."""


class CheckpointConfig(Config):
    """When the whole state is saved, and how many are kept beside the best."""

    every: PositiveInt = 1000
    keep: PositiveInt = 2


class RunConfig(Config):
    """What every stage's recipe has."""

    output: str
    """The run's folder."""
    seed: NonNegativeInt = 0
    steps: PositiveInt
    minutes: PositiveFloat | None = None
    """Save and stop after so long; `--resume` goes on."""
    data: DataConfig
    ema: Decay | None = None
    """Decay of a moving average of the codec's weights (0.999, 0.9999), which is then what is measured, loaded and gone
    on from; it begins with less and reaches this after some nine times `1 / (1 - ema)` steps. null: no average."""
    engine: EngineConfig = EngineConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: PositiveInt = 10
    """Steps between two lines of progress and TensorBoard scalars; `metrics.jsonl` has every step."""

    @model_validator(mode="after")
    def _whole_weights(self) -> "RunConfig":
        if self.ema is not None and self.engine.kind == "fsdp2":
            raise ValueError("ema: fsdp2 shards the weights that it averages: use ddp or single, or set ema to null")
        return self


class LanguageModelConfig(Config):
    """The language model that transcribes, in pre-training only (spec section 8.1)."""

    source: str = "Qwen/Qwen2.5-0.5B"
    """Any causal language model of Transformers: a hub id or a folder."""
    trainable: bool = False
    adapter: TowerConfig = TowerConfig(d_model=768, layers=4, heads=12, ffn_dim=3072)
    reads: Literal["post_rvq_adapter", "quantizer"] = "post_rvq_adapter"
    """Whose output the adapter reads."""
    prompt: str = ""
    """Fixed text between the speech and its transcript."""
    max_tokens: PositiveInt = 448
    """Longer transcripts are cut."""


class PretrainingLoss(Config):
    """Weights of the losses; 0 leaves one out."""

    asr: NonNegativeFloat = 20.0
    mel: NonNegativeFloat = 15.0
    commitment: NonNegativeFloat = 1.0
    features: NonNegativeFloat = 0.0
    """Distance of what the vocoder reads from the clip's log-mel; cheap, since no audio is made for it. Not the
    paper's: for a vocoder that has learned from log-mels alone (stage `vocoder`)."""


def _require_a_loss(weights: Config) -> None:
    if not any(weights.model_dump().values()):
        raise ValueError("loss: every weight is 0: give at least one")


class PretrainRecipe(RunConfig):
    """X-shaped pre-training: one quantizer, read by the acoustic decoder and by a language model."""

    stage: Literal["pretrain"]
    model: XYTokenizerConfig
    towers: str | None = "openai/whisper-small"
    """The Whisper whose encoder both towers start from, a hub id or a folder; or a run or checkpoint of stage
    `recognise`, whose tower the semantic one starts from, and the acoustic one if it is of that size; null starts at
    random."""
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
        if self.mel_reaches == "vocoder" and self.loss.mel and not self.loss.features:
            raise ValueError("mel_reaches: with vocoder the decoder learns from loss.features alone: give it a weight")
        return self


class VocoderRecipe(RunConfig):
    """The vocoder alone, from log-mels of the data: a start for `vocos` of pre-training (not in the paper)."""

    stage: Literal["vocoder"]
    model: XYTokenizerConfig
    optimizer: OptimizerConfig = OptimizerConfig()


class PosttrainingLoss(Config):
    """Weights of the generator's losses; 0 leaves one out."""

    mel: NonNegativeFloat = 15.0
    feature: NonNegativeFloat = 1.0
    adversarial: NonNegativeFloat = 1.0


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
    commitment: NonNegativeFloat = 1.0
    semantic: NonNegativeFloat = 100.0

    @model_validator(mode="after")
    def _heard(self) -> "XCodecLoss":
        if not any((self.adversarial, self.feature, self.stft, self.subband_stft, self.mel)):
            raise ValueError("the decoder has none: give stft, subband_stft, mel, adversarial or feature a weight")
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
    n_q: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 4, 8)
    """Each step runs so many of the codebooks, one of these numbers at random, the same on all processes."""
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


Recipe = PretrainRecipe | PosttrainRecipe | VocoderRecipe | RecogniseRecipe | XCodecRecipe
STAGES: dict[str, type[Recipe]] = {
    "pretrain": PretrainRecipe,
    "posttrain": PosttrainRecipe,
    "recognise": RecogniseRecipe,
    "vocoder": VocoderRecipe,
    "xcodec": XCodecRecipe,
}
