"""Shared base of the stages that train language models: stores of tokens in, means over codes out."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.utils.rnn import pad_sequence

from xycodec.checkpoints.load import load_codec
from xycodec.data.batch import Batch, Position
from xycodec.data.catalogue import Tell
from xycodec.data.clip import generator_of
from xycodec.data.codes import CodeClip, collate_codes, open_description, open_store, same_codec
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import Corpus, open_stores
from xycodec.distributed import all_reduce_, world_size
from xycodec.errors import ConfigError, XycodecError
from xycodec.io.config import Config
from xycodec.io.rate import SPEECH_RATE
from xycodec.lm.config import CodecIdentity
from xycodec.lm.text import TextConfig, collect_symbols
from xycodec.models.base import Codec, codes_fingerprint
from xycodec.nn.mean import Mean
from xycodec.train.config import OptimizerConfig, RunConfig
from xycodec.train.engine import Engine
from xycodec.train.optimize import Updater
from xycodec.train.stage import Measured, Needs, Networks, Sound, Stage, StepReport, weighted

VALIDATION = -1  # in the place of a step's number: the same draws each time
_TEXT_ROWS = 15  # a second, in a plan: about as many characters as English has


class LanguageRecipe(RunConfig):
    """Settings that every recipe of a language model has. Its `data` are stores of tokens."""

    optimizer: OptimizerConfig = OptimizerConfig()
    codec: str | None = None
    """The codec that decodes validation clips, as `load_codec` names it, with the weights that made the codes; null:
    nothing is heard."""

    @model_validator(mode="after")
    def _of_codes(self) -> "LanguageRecipe":
        if self.ema is not None:
            raise ValueError("ema: only a codec's weights are averaged: leave it out")
        if self.data.in_memory:
            raise ValueError("data.in_memory: stores of tokens are mapped already: set it to false")
        changed = [name for name, value in self.data.augment if value and not name.endswith("_range")]
        if changed:
            raise ValueError(f"data.augment.{changed[0]}: codes cannot be changed: set it to 0")
        if self.validation.recogniser is not None and self.codec is None:
            raise ValueError("validation.recogniser: there is nothing to hear: name the codec")
        return self


NEEDS_TEXT = Needs("text", "a text, which the model is to speak: tokenize a corpus with texts")
RecipeT = TypeVar("RecipeT", bound=LanguageRecipe)


class LanguageStage(Stage[RecipeT], Generic[RecipeT]):
    """A stage that trains one network whose forward pass gives means over codes."""

    trains = "language_model"
    config: Any

    def __init__(self, recipe: RecipeT, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.config = self.configure(recipe)
        self.weights = self.loss_weights(recipe, self.config)
        self.output_sample_rate = output_rate(recipe)
        self.plain = _seeded(recipe, lambda: self.network(self.config))
        self.model = engine.wrap(self.plain)
        self.networks = {"model": self.model}
        self.updaters = {"model": Updater(self.model, recipe.optimizer, recipe.steps)}
        self._codec = None if recipe.codec is None else own_codec(recipe.codec, self.config.codec, engine.device)

    # ---- what a stage tells of its model -------------------------------------------------------

    @classmethod
    @abstractmethod
    def configure(cls, recipe: RecipeT) -> Config:
        """The model's configuration, as a checkpoint keeps it. Raises ConfigError, CheckpointError."""

    @classmethod
    @abstractmethod
    def network(cls, config: Any) -> nn.Module:
        """The network of a configuration with random weights."""

    @classmethod
    @abstractmethod
    def loss_weights(cls, recipe: RecipeT, config: Any) -> dict[str, float]:
        """Weights of the means that make the loss."""

    @classmethod
    @abstractmethod
    def task(cls, recipe: RecipeT, config: Any, batch: Batch, step: int) -> Any:
        """The task of a batch: what the model reads and is to predict, on the CPU; `step` decides what is drawn."""

    def generate(self, batch: Batch, item: int) -> Tensor | None:
        """Codes (k, L) that the model makes of a validation clip; None where it makes none."""
        return None

    # ---- before the run ------------------------------------------------------------------------

    @classmethod
    def build(cls, recipe: RecipeT, *, meta: bool = False) -> Networks:
        """The network of a recipe."""
        config = cls.configure(recipe)
        with torch.device("meta" if meta else "cpu"):
            network = _seeded(recipe, lambda: cls.network(config))
        return Networks(network, output_rate(recipe))

    @classmethod
    def open(cls, recipe: RecipeT, sources: Sequence[SourceConfig], tell: Tell) -> Corpus:
        """Open stores of tokens. Raises ConfigError if their codes are not of the training data's codec."""
        same_codec([*recipe.data.train, *sources])
        required = None if cls.needs is None else cls.needs.fact
        return open_stores(sources, required, companions=cls.wants_companions(recipe))

    @classmethod
    def wants_companions(cls, recipe: RecipeT) -> bool:
        """Whether each clip is to come with another one of its speaker."""
        return False

    @classmethod
    def silence(cls, recipe: RecipeT, output_sample_rate: int) -> Batch:
        """A batch of no clip."""
        return collate_codes((), (), Position(0, 0), codec_of(recipe).n_q)

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run a step's forward pass on the longest codes that the recipe allows."""
        network: Any = networks.model
        about: CodecIdentity = network.config.codec
        seconds = batch.lengths[0] / SPEECH_RATE
        with unset_fake_temporarily():  # a task tells its places by its values
            codes = torch.zeros(about.n_q, max(1, round(seconds * about.frame_rate)), dtype=torch.int64)
            text = "a" * round(_TEXT_ROWS * seconds)
            clip = CodeClip("", codes, codes.shape[1] * about.hop_length, text, None)
            made = collate_codes([clip] * len(batch.lengths), (), Position(0, 0), about.n_q)
            task = cls.rehearsal(network.config, made)
        network.train()(task)

    @classmethod
    @abstractmethod
    def rehearsal(cls, config: Any, batch: Batch) -> Any:
        """The task of a batch, whatever its text."""

    # ---- the run -------------------------------------------------------------------------------

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """One update on means over the codes of all micro-batches and processes, counted before the first pass."""
        self.model.train()
        tasks = [self.task(self.recipe, self.config, batch, step).to(self.engine.device) for batch in batches]
        counted = [task.counts() for task in tasks]
        names = list(counted[0])
        packed = all_reduce_(torch.stack([torch.cat([count[name] for name in names]) for count in counted]).sum(dim=0))
        counts = {name: packed[place : place + 1] for place, name in enumerate(names)}
        values: dict[str, Tensor] = {}
        for index, task in enumerate(tasks):
            with self.engine.joining(self.model, last=index == len(tasks) - 1):
                means = self._compute(task)
                shares = {name: mean.share(counts[name], parts=world_size()) for name, mean in means.items()}
                shares["loss"] = weighted(shares, self.weights)
                torch.autograd.backward(shares["loss"])
            values = {name: values.get(name, 0.0) + share.detach() for name, share in shares.items()}
        return StepReport(values, {"grad_norm": self.updaters["model"].update(step, batches[0].position.epoch)})

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Means of a batch; and what the model makes of the first clips, decoded."""
        self.model.eval()
        means = self._compute(self.task(self.recipe, self.config, batch, VALIDATION).to(self.engine.device))
        # All processes gather a sharded network, whether they have a clip to hear or not.
        with self.engine.whole(self.model):
            return Measured(means, sounds=self._sounds(batch))

    def loss(self, values: Mapping[str, float]) -> float:
        """The weighted sum of losses that training minimises."""
        return float(weighted(values, self.weights))

    def model_config(self) -> dict[str, Any]:
        """The model's configuration, with its codec and its table of symbols."""
        made: dict[str, Any] = self.config.model_dump(mode="json")
        return made

    def _compute(self, task: Any) -> dict[str, Mean]:
        with self.engine.autocast():
            means: dict[str, Mean] = self.model(task)
        return means

    def _sounds(self, batch: Batch) -> tuple[Sound, Sound] | None:
        """Original and made audio of the batch's clips that are among the first of the validation."""
        limits = self.recipe.validation
        wanted = max(limits.listen, 0 if limits.recogniser is None else limits.transcribe)
        left = wanted - (batch.position.batch - 1) * self.recipe.data.batch_clips
        if self._codec is None or batch.codes is None or left <= 0 or not batch.frames[0]:
            return None
        made: list[Tensor] = []
        for item in range(min(left, len(batch.frames))):
            try:
                codes = self.generate(batch, item)
            except XycodecError:  # an early model says nothing now and then
                codes = batch.codes[item, :, :0]
            if codes is None:
                return None
            made.append(codes)
        truth = [batch.codes[item, :, : batch.frames[item]] for item in range(len(made))]
        return self._decode(truth), self._decode(made)

    def _decode(self, clips: Sequence[Tensor]) -> Sound:
        codec = self._codec
        assert codec is not None
        heard = [
            codec.decode(codes[None].to(self.engine.device)).audio[0].float().cpu()
            if codes.shape[1]
            else torch.zeros(1)
            for codes in clips
        ]
        return Sound(pad_sequence(heard, batch_first=True), tuple(len(one) for one in heard))


def codec_of(recipe: LanguageRecipe) -> CodecIdentity:
    """The codec of a recipe's training data. Raises ConfigError."""
    return CodecIdentity.of(same_codec(recipe.data.train))


def output_rate(recipe: LanguageRecipe) -> int:
    """Rate of decoded audio, Hz."""
    return open_description(recipe.data.train[0]).output_sample_rate


def own_codec(name: str, wanted: CodecIdentity, device: torch.device | Literal["auto"]) -> Codec:
    """Load the codec that made the codes of a store. Raises ConfigError if its weights are others."""
    codec = load_codec(name, device=str(device))
    if codes_fingerprint(codec) != wanted.weights:
        raise ConfigError(
            f"codec: {name} has the weights {codes_fingerprint(codec)}, the codes are of {wanted.name} with "
            f"{wanted.weights}: name the codec that made them"
        )
    return codec


def complete(text: TextConfig, recipe: LanguageRecipe) -> TextConfig:
    """A text front end with the symbols of the training texts, if it has none. Raises XycodecError without texts."""
    if text.symbols is not None or text.kind in ("bytes", "tokenizer"):
        return text
    return collect_symbols(texts_of(recipe.data.train), text)


def spoken(batch: Batch, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Codes (n_q, L) of a batch's clips on the CPU; of a clip without text, none."""
    assert batch.codes is not None
    lengths = [count if text else 0 for text, count in zip(texts, batch.frames, strict=True)]
    return [one[:, :count].cpu() for one, count in zip(batch.codes, lengths, strict=True)]


def draws(recipe: RunConfig, batch: Batch, step: int, *, alike: bool = False) -> torch.Generator:
    """Draws of a micro-batch: the seed, the step and the batch's place decide them, `alike` on all processes."""
    own: tuple[str, ...] = () if alike else batch.ids
    facts: list[int | str] = [recipe.seed, step, batch.position.epoch, batch.position.batch, *own]
    return torch.Generator().manual_seed(int(generator_of("language", *facts).integers(1 << 62)))


def texts_of(sources: Sequence[SourceConfig]) -> Iterator[str]:
    """Yield the texts of all clips of stores."""
    return (text for source in sources for text in open_store(source).texts() if text is not None)


def _seeded(recipe: RunConfig, make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return make()
