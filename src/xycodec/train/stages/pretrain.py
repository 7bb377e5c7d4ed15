"""X-shaped pre-training: one quantizer, read by the acoustic decoder and by a language model.

See docs/models/xy_tokenizer.md, Pre-training.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from xycodec.checkpoints.training import AVERAGE
from xycodec.data.batch import Batch
from xycodec.data.clip import FRAME
from xycodec.data.corpus import open_corpus
from xycodec.data.stream import BatchStream
from xycodec.data.survey import Survey
from xycodec.distributed import world_size
from xycodec.errors import ConfigError
from xycodec.eval.metrics.wer import WordErrors, word_error_rate
from xycodec.io.config import Config
from xycodec.io.rate import SPEECH_RATE
from xycodec.losses.mel import MultiScaleMel
from xycodec.models.xy_tokenizer.config import CONFIGS, LanguageModelConfig, XYTokenizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.models.xy_tokenizer.semantic_branch import SemanticBranch, Tokens
from xycodec.models.xy_tokenizer.semantic_lm import load_semantic_lm
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import frame_mask
from xycodec.train.average import WeightAverage
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig, RunConfig, require_a_loss
from xycodec.train.distances import feature_distance, state_distance, states_of_features
from xycodec.train.engine import Engine
from xycodec.train.excerpt import random_first_frame, synthesise_excerpts
from xycodec.train.init.linear import start_linear
from xycodec.train.init.weights import adopt_vocoder, load_weights, start_towers
from xycodec.train.optimize import Updater
from xycodec.train.stage import Measured, Networks, Stage, StepReport, joint_values, register, weighted

STARTING_CLIPS, STARTING_FRAMES = 1000, 25  # what a linear start looks at: 2 s of each clip
SEARCHED = 50_000  # clips at most, since a mix of short ones has no end
TOKENS_PER_SECOND = 10  # more than anyone says: where transcription gives up


# ---- the recipe ----------------------------------------------------------------------------------


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


def _require_teacher(model: XYTokenizerConfig) -> None:
    if model.semantic_encoder is None:
        raise ValueError("loss.states: the semantic tower compares, and the model has none: set it to 0")


class PretrainRecipe(RunConfig):
    """X-shaped pre-training: one quantizer, read by the acoustic decoder and by a language model."""

    stage: Literal["pretrain"]
    model: XYTokenizerConfig
    towers: str | None = "openai/whisper-small"
    """The Whisper whose encoder both towers start from, a hub id or a folder; or a run or checkpoint of stage
    `ctc`, whose tower the semantic one starts from, and the acoustic one if it is of that size; null starts at
    random. With `start: linear`, which fills the acoustic tower, it is the semantic one's alone."""
    freeze_semantic: bool = True
    start: Literal["plain", "linear"] = "plain"
    """Initialization of parts without weights: torch's own, or a linear codec fitted to the data (not in the paper)."""
    weights: str | None = None
    """A run, checkpoint or codec whose weights to start from, instead of `towers`."""
    vocos: str | None = None
    """A run, checkpoint or codec whose vocoder to start from, whatever the rest starts from."""
    segment_seconds: PositiveFloat | None = None
    """Audio is made of so much of each clip, from a random place, for the mel loss; null: of all of it. Most of a
    step's time goes into audio, so that more clips are seen."""
    mel_reaches: Literal["all", "vocoder"] = "all"
    """Parts that get the mel loss's gradient. Through a vocoder that is still learning, other parts get noise from
    it, and learn better from `loss.features` alone."""
    positions: Literal["first", "random"] = "first"
    """Positions of a batch's clips in the window: its beginning, or a random place, so that clips shorter than the
    window teach all of its positions."""
    lm: LanguageModelConfig | None = LanguageModelConfig()
    loss: PretrainingLoss = PretrainingLoss()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _listener(self) -> "PretrainRecipe":
        if self.loss.asr and self.lm is None:
            raise ValueError("loss.asr needs a language model: give lm, or set loss.asr to 0")
        require_a_loss(self.loss)
        if self.start == "linear" and self.weights is not None:
            raise ValueError("start: linear would undo what weights gives: set one of the two to plain or null")
        if self.loss.states:
            _require_teacher(self.model)
            if not self.freeze_semantic or not self.loss.features:
                raise ValueError("loss.states needs freeze_semantic, and a weight for loss.features")
        if self.mel_reaches == "vocoder" and self.loss.mel and not self.loss.features:
            raise ValueError("mel_reaches: with vocoder the decoder learns from loss.features alone: give it a weight")
        return self


# ---- the networks --------------------------------------------------------------------------------


class Pass(NamedTuple):
    """Result of a forward pass. Plain tuples, because FSDP looks for tensors in them. Losses have gradients."""

    losses: dict[str, tuple[Tensor, Tensor]]
    """Total and count of each loss's `Mean`."""
    accuracy: tuple[Tensor, Tensor] | None
    """Total and count of the language model's next-token accuracy."""
    counts: Tensor
    """(n_q, codebook_size) uses of every code."""
    audio: Tensor
    """(B, T) decoded; empty in training where no loss hears it."""
    read: Tensor
    """(B, L, D) what the language model reads."""


class PreTraining(nn.Module):
    """The codec with its language model: from a batch to its losses."""

    def __init__(self, codec: XYTokenizer, semantic_lm: SemanticBranch | None, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.codec, self.semantic_lm = codec, semantic_lm
        self.mel = MultiScaleMel(codec.output_sample_rate)
        self.weights, self.segment_seconds, self.mel_reaches = recipe.loss, recipe.segment_seconds, recipe.mel_reaches
        self.random_positions = recipe.positions == "random"
        self.reads_adapter = recipe.lm is None or recipe.lm.reads == "post_rvq_adapter"

    def forward(self, batch: Batch, tokens: Tokens | None) -> Pass:
        """Compute the losses of a batch; those of weight zero only in validation."""
        codec = self.codec
        # A batch of which nothing could be read still goes through: one silent frame that counts nowhere.
        frames = [codec.num_frames(n) for n in batch.lengths]
        first = random_first_frame(codec, frames) if self.training and self.random_positions else 0
        encoded = codec.encode_latents(batch.audio, [max(n, 1) for n in batch.lengths], first)
        latents = encoded.latents
        mask = frame_mask(frames, latents.shape[1])
        quantized = codec.quantizer(latents, mask)
        device_mask = None if mask is None else mask.to(latents.device, non_blocking=True)
        hidden = codec.post_rvq_adapter(quantized.quantized, device_mask, first)
        losses: dict[str, Mean] = {}
        audio = hidden.new_zeros(len(hidden), 0)
        if self.weights.mel or self.weights.features or self.weights.states or not self.training:
            features = codec.acoustic_features(hidden, device_mask, first)
            if self.weights.features:
                losses["features"] = feature_distance(codec, features, batch)
            if self.weights.states:
                assert encoded.semantic is not None
                tower_mask = (
                    None if device_mask is None else device_mask.repeat_interleave(codec.upsample.factor, dim=1)
                )
                losses["states"] = state_distance(
                    states_of_features(codec, features, tower_mask, first), encoded.semantic
                )
            if self.weights.mel or not self.training:
                heard = features.detach() if self.mel_reaches == "vocoder" else features
                seconds = self.segment_seconds if self.training else None
                audio, target, lengths = synthesise_excerpts(codec, heard, frames, batch, seconds)
                losses["mel"] = self.mel(audio, target, lengths)
        if self.weights.commitment:
            losses["commitment"] = quantized.commitment_loss
        read = hidden if self.reads_adapter else quantized.quantized
        accuracy = None
        if self.semantic_lm is not None and tokens is not None:
            listened = self.semantic_lm(read, frames, tokens)
            losses["asr"], accuracy = listened.loss, listened.accuracy
        return Pass(
            # Copies, because FSDP cannot guard views.
            losses={name: (mean.total.clone(), mean.count) for name, mean in losses.items()},
            accuracy=None if accuracy is None else (accuracy.total, accuracy.count),
            counts=quantized.counts,
            audio=audio.detach(),
            read=read.detach(),
        )


@register
class PretrainStage(Stage[PretrainRecipe]):
    """The stage of pre-training."""

    name = "pretrain"
    words_name = "asr_wer"  # of the language model, which listens to the codec; the other is of the decoded audio
    recipe_class = PretrainRecipe
    presets: ClassVar[Mapping[str, Config]] = CONFIGS

    def __init__(self, recipe: PretrainRecipe, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.weights: dict[str, float] = recipe.loss.model_dump()
        self.output_sample_rate = recipe.model.output_sample_rate
        model = build(recipe)
        self.codec, self.semantic_lm = model.codec, model.semantic_lm
        self.average = None if recipe.ema is None else WeightAverage(self.codec, recipe.ema).to(engine.device)
        self.model = self.measured = engine.wrap(model)
        self.networks = {"model": self.model}
        if self.average is not None:
            self.networks[AVERAGE] = self.average
            self.measured = PreTraining(self.average.codec, self.semantic_lm, recipe).to(engine.device)
        self.updaters = {"model": Updater(self.model, recipe.optimizer, recipe.steps)}

    @classmethod
    def build(cls, recipe: PretrainRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        return Networks(build(recipe, meta=meta), recipe.model.output_sample_rate)

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run codec and language model once, with about as many tokens as are spoken in 30 s."""
        tokens = Tokens(torch.zeros(len(batch.ids), 100, dtype=torch.int64), (100,) * len(batch.ids))
        model = networks.model.eval()
        model(batch, None if model.semantic_lm is None else tokens)

    @classmethod
    def resumed(cls, recipe: PretrainRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Settings of a resumed run: no other sources of weights."""
        return {"weights": None, "towers": None, "vocos": None, "start": "plain"}

    @classmethod
    def remarks(cls, recipe: PretrainRecipe, found: Survey) -> Iterator[str]:
        """Clips without text, which the ASR loss passes over; ConfigError if it would pass over all."""
        if not recipe.loss.asr:
            return
        if found.clips and not found.with_text:
            raise ConfigError("data.train: no clip has a text, which the ASR loss needs: set loss.asr=0, or add texts")
        if found.with_text < found.clips:
            yield f"without text: {found.clips - found.with_text:,} clips, which train reconstruction only"

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """One update: gradients of micro-batches are added; each is a mean over all processes."""
        self.model.train()
        with self.codec.quantizer.one_step(batches, lambda batch: self._compute(self.model, batch)):
            values, counts = self._learn(batches)
        values["loss"] = weighted(values, self._active(values))
        norm = self.updaters["model"].update(step)
        if self.average is not None:
            self.average.update(self.codec, step)
        return StepReport(values, {"grad_norm": norm}, counts)

    def _learn(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor | None]:
        values: dict[str, Tensor] = {}
        counts = None
        for index, batch in enumerate(batches):
            with self.engine.joining(self.model, last=index == len(batches) - 1):
                made = self._compute(self.model, batch)
                joined = joint_values(_means(made))
                (weighted(joined, self._active(joined)) / len(batches)).backward()
            for name, value in joined.items():
                values[name] = values.get(name, 0.0) + value.detach() / len(batches)
            counts = made.counts if counts is None else counts + made.counts
        return values, counts

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure the losses, token accuracy, and the language model's transcripts."""
        self.measured.eval()
        made = self._compute(self.measured, batch)
        texts: tuple[str, ...] = ()
        words = WordErrors(0, 0)
        if transcribe and self.semantic_lm is not None:
            with self.engine.whole(self.model), self.engine.autocast():
                # A clip without text has nothing to be compared with.
                said = self._texts(batch)
                counts = zip(batch.lengths, said, strict=True)
                frames = [self.codec.num_frames(n) if text else 0 for n, text in counts]
                most = ceil(TOKENS_PER_SECOND * max(batch.lengths) / SPEECH_RATE) + 1
                texts = tuple(self.semantic_lm.transcribe(made.read, frames, most))
            pairs = [(text, heard) for text, heard in zip(said, texts, strict=True) if text]
            if pairs:
                words = word_error_rate([text for text, _ in pairs], [heard for _, heard in pairs])
        return Measured(_means(made), made.counts, made.audio, words, texts)

    def loss(self, values: Mapping[str, float]) -> float:
        """The weighted sum of losses that training minimises."""
        return float(weighted(values, self._active(values)))

    def model_config(self) -> dict[str, Any]:
        """The configuration of the codec that is trained."""
        return self.recipe.model.model_dump(mode="json")

    def kept(self, network: str, key: str) -> bool:
        """Leave out a frozen language model, which comes from its source again."""
        frozen = self.semantic_lm is not None and not self.semantic_lm.trainable
        return not (frozen and key.startswith("semantic_lm.lm."))

    def _compute(self, model: nn.Module, batch: Batch) -> Pass:
        tokens = None if self.semantic_lm is None else self.semantic_lm.tokenize(self._texts(batch))
        with self.engine.autocast():
            made: Pass = model(batch, tokens)
        return made

    def _texts(self, batch: Batch) -> list[str | None]:
        """The transcripts that the language model is to write; None where it is to write none."""
        said = zip(batch.texts, batch.languages, strict=True)
        return [
            text if self.semantic_lm is None or self.semantic_lm.writes(language) else None for text, language in said
        ]

    def _active(self, values: Mapping[str, Any]) -> dict[str, float]:
        return {name: weight for name, weight in self.weights.items() if name in values}


def _means(made: Pass) -> dict[str, Mean]:
    means = {name: Mean(*pair) for name, pair in made.losses.items()}
    if made.accuracy is not None:
        means["accuracy"] = Mean(*made.accuracy)
    return means


def build(recipe: PretrainRecipe, *, meta: bool = False) -> PreTraining:
    """The networks of a recipe with their starting weights; `meta` builds them without any, to count them.

    Raises CheckpointError or ConfigError where towers, weights or language model do not fit.
    """
    config = recipe.model
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        codec = XYTokenizer(config)
        lm = None
        if recipe.loss.asr and recipe.lm is not None:
            lm = load_semantic_lm(recipe.lm, input_dim=config.latent_dim, window_frames=config.window_frames, meta=meta)
    if recipe.data.clip_seconds > codec.window_samples / codec.input_sample_rate:
        raise ConfigError(
            f"data.clip_seconds: {recipe.data.clip_seconds:g} s is longer than the model's window of "
            f"{codec.window_samples / codec.input_sample_rate:g} s: lower it, or raise model.window_frames"
        )
    model = PreTraining(codec, lm, recipe)
    if not meta:
        _initialise(model, recipe)
    if recipe.freeze_semantic and codec.semantic_encoder is not None:
        codec.semantic_encoder.requires_grad_(False)
    for part in _unreached(model):
        part.requires_grad_(False)
    return model


def _unreached(model: PreTraining) -> Iterator[nn.Module]:
    """Parts without a loss. They are frozen, because engines wait for the gradient of all that is trained."""
    codec, weights = model.codec, model.weights
    if weights.mel:
        return
    yield codec.vocos
    if weights.features or weights.states:
        return
    yield from (codec.upsample, codec.acoustic_decoder)
    if not (weights.asr and model.reads_adapter):
        yield codec.post_rvq_adapter
    if not weights.asr:
        yield codec.quantizer.output_proj


def _initialise(model: PreTraining, recipe: PretrainRecipe) -> None:
    if recipe.weights is not None:
        load_weights(model, Path(recipe.weights))
    elif recipe.towers is not None:
        start_towers(model.codec, recipe.towers, semantic_only=recipe.start == "linear")
    if recipe.start == "linear":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            start_linear(model.codec, _excerpt_of_each(recipe), batch_frames=_batch_frames(recipe))
    if recipe.vocos is not None:
        adopt_vocoder(model.codec, recipe.vocos)


def _batch_frames(recipe: PretrainRecipe) -> float:
    """Code frames of a whole step's batch: what a codebook's counts will add up to."""
    data = recipe.data
    seconds = data.batch_seconds or data.batch_clips * data.clip_seconds
    return seconds * recipe.model.frame_rate * recipe.engine.accumulate * world_size()


def _excerpt_of_each(recipe: PretrainRecipe) -> Tensor:
    """The beginnings (N, T) of clips that are long enough; every process takes the same."""
    corpus = open_corpus(recipe.data.train)
    config = recipe.data.model_copy(update={"workers": 0})
    samples = STARTING_FRAMES * FRAME
    stream = BatchStream(
        corpus, config, output_sample_rate=recipe.model.output_sample_rate, seed=recipe.seed, rank=0, world_size=1
    )
    found: list[Tensor] = []
    searched = 0
    for batch in stream.batches():
        searched += len(batch.ids)
        found += [clip[:samples] for clip, n in zip(batch.audio, batch.lengths, strict=True) if n >= samples]
        if len(found) >= STARTING_CLIPS or searched >= SEARCHED or batch.position.epoch > 0:
            break
    if not found:
        raise ConfigError(f"start: linear needs clips of {samples / SPEECH_RATE:g} s, and found none")
    return torch.stack(found[:STARTING_CLIPS])
