"""A run of stage `autoencode` as a codec: AUTOENCODER=RUN xycodec evaluate --codec runs/autoencoder.py:Autoencoded...

It has no codes: what stands for them are the frozen encoder's features. Clips longer than a window go through windows
without overlap.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xycodec.checkpoints.training import read_checkpoint
from xycodec.train.init.weights import find_checkpoint
from xycodec.train.recipe_file import parse_recipe
from xycodec.train.stages import stage_of


class Autoencoded:
    """The autoencoder of the run that AUTOENCODER names."""

    sample_rate = 16_000
    frame_rate = 50.0

    def __init__(self) -> None:
        run = Path(os.environ["AUTOENCODER"])
        checkpoint = find_checkpoint(run)
        if checkpoint is None:
            raise ValueError(f"{run}: holds no checkpoint: train it first")
        data = read_checkpoint(checkpoint)
        recipe = parse_recipe(data["recipe"] | {"encoder": None}, str(checkpoint))
        model = stage_of(recipe).build(recipe).model
        model.load_state_dict(data["networks"]["model"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.autoencoder.eval().to(self.device)
        self.window = recipe.model.window_frames * 320
        self.name, self.version = str(run), str(data.get("step"))

    @torch.no_grad()
    def encode(self, audio: np.ndarray) -> list[tuple[Any, int]]:
        """Audio (T,) -> features (1, L, D) and samples of each window."""
        parts = torch.from_numpy(audio).to(self.device).split(self.window)
        return [(self.model.encode(part[None], [len(part)]), len(part)) for part in parts]

    @torch.no_grad()
    def decode(self, features: list[tuple[Any, int]]) -> torch.Tensor:
        """Features of every window -> audio (T,)."""
        parts = [self.model.decode(one, [one.shape[1]])[0, :samples] for one, samples in features]
        return torch.cat(parts)
