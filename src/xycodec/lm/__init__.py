"""Language models over codes: patterns, vocabularies, stores as datasets, models that speak and make music."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from xycodec.lm.delay import DelaySpeaker
    from xycodec.lm.gpt import Composer
    from xycodec.lm.valle import ValleSpeaker


def load(folder: str | Path, *, device: str = "auto") -> Union["DelaySpeaker", "ValleSpeaker", "Composer"]:
    """Load a trained language model: a run's folder, a checkpoint, or what `xycodec export` made of one.

    Models that speak have `speak`, models of music and sound `generate`; all name the codec whose codes they are of.
    Raises CheckpointError, one line, if there is no such model.
    """
    from xycodec.lm.loading import load_model

    model: DelaySpeaker | ValleSpeaker | Composer = load_model(Path(folder), device=device)
    return model
