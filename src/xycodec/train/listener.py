"""The text of codes, as the language model of a pre-training run hears it."""

from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from xycodec.checkpoints.load import load_xy_tokenizer, resolve_device
from xycodec.checkpoints.training import read_checkpoint
from xycodec.errors import CheckpointError
from xycodec.models.precision import own_precision
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.models.xy_tokenizer.semantic_branch import LMOutput, SemanticBranch
from xycodec.models.xy_tokenizer.semantic_lm import load_semantic_lm
from xycodec.train.init.weights import find_checkpoint
from xycodec.train.recipe_file import parse_recipe
from xycodec.train.stages.pretrain import TOKENS_PER_SECOND, PretrainRecipe


class Listener:
    """A codec, and the language model that was trained to transcribe its codes.

    `reads_adapter` says whether it reads the output of the adapter after the quantizer (the paper's way) or the
    quantizer's own. Texts follow from a clip's codes alone, whatever else is transcribed with it.
    """

    def __init__(self, codec: XYTokenizer, semantic_lm: SemanticBranch, *, reads_adapter: bool = True) -> None:
        self.codec, self.semantic_lm, self.reads_adapter = codec.eval(), semantic_lm.eval(), reads_adapter

    @torch.no_grad()
    def transcribe(self, codes: Tensor) -> str:
        """Text of one clip's codes (k, L), k of the first layers; greedy, and empty where L is 0.

        Codes of more than a window are heard window by window: a word that lies across two may be lost.
        """
        return " ".join(filter(None, map(self._hear, torch.split(codes, self.codec.window_frames, dim=-1))))

    @torch.no_grad()
    def score(self, codes: Tensor, text: str) -> LMOutput:
        """Loss (nats a token) and accuracy of `text` and its end, given one clip's codes (k, L) of a window at most."""
        features = self._features(codes)
        with own_precision(self.codec.device):
            heard: LMOutput = self.semantic_lm(features, [features.shape[1]], self.semantic_lm.tokenize([text]))
        return heard

    def _hear(self, codes: Tensor) -> str:
        frames = codes.shape[-1]
        most = ceil(TOKENS_PER_SECOND * frames / self.codec.frame_rate) + 1
        with own_precision(self.codec.device):
            return self.semantic_lm.transcribe(self._features(codes), [frames], most)[0] if frames else ""

    def _features(self, codes: Tensor) -> Tensor:
        """Features (1, L, latent_dim) of codes (k, L), as the language model reads them."""
        quantized = self.codec.embed(codes[None]).transpose(1, 2)
        with own_precision(self.codec.device):
            return self.codec.post_rvq_adapter(quantized) if self.reads_adapter else quantized


def load_listener(run: str | Path, *, lm: str | None = None, device: str = "auto") -> Listener:
    """The listener of a pre-training run: its newest checkpoint's, or that of one named.

    A frozen language model is no part of a checkpoint and comes from its source again; `lm` names another place of the
    same model. Raises CheckpointError, one line, if `run` is no such run, had no language model, or does not fit it.
    """
    checkpoint = find_checkpoint(Path(run))
    if checkpoint is None:
        raise CheckpointError(f"{run}: no run and no checkpoint of one: name a run of stage pretrain")
    recipe, weights = _recipe_and_weights(checkpoint)
    assert recipe.lm is not None
    codec = load_xy_tokenizer(checkpoint)
    source = recipe.lm if lm is None else recipe.lm.model_copy(update={"source": lm})
    listens = load_semantic_lm(source, input_dim=codec.config.latent_dim, window_frames=codec.window_frames)
    own = listens.state_dict()
    for key, value in own.items():
        fits = key in weights and weights[key].shape == value.shape
        if not fits and (key.startswith("adapter.") or recipe.lm.trainable):
            raise CheckpointError(f"{checkpoint}: its semantic_lm.{key} does not fit {source.source}")
    listens.load_state_dict(own | weights)
    place = resolve_device(device)
    return Listener(codec.to(place), listens.to(place), reads_adapter=recipe.lm.reads == "post_rvq_adapter")


def _recipe_and_weights(checkpoint: Path) -> tuple[PretrainRecipe, dict[str, Tensor]]:
    """A checkpoint's recipe, and the tensors of its semantic branch by their names there."""
    data = read_checkpoint(checkpoint)
    if data.get("recipe") is None:
        raise CheckpointError(f"{checkpoint}: exported weights tell no language model: name the run that they are of")
    recipe = parse_recipe(data["recipe"], str(checkpoint))
    if not isinstance(recipe, PretrainRecipe):
        raise CheckpointError(f"{checkpoint}: of stage {recipe.stage}, where no language model listens: name another")
    prefix = "semantic_lm."
    networks: dict[str, Tensor] = data["networks"]["model"]
    weights = {key.removeprefix(prefix): value for key, value in networks.items() if key.startswith(prefix)}
    if recipe.lm is None or not weights:
        raise CheckpointError(f"{checkpoint}: trained without a language model: name a run with loss.asr")
    return recipe, weights
