"""Starting weights of an autoencoder's frozen encoder."""

from xycodec.checkpoints.whisper import find_whisper
from xycodec.models.autoencoder.config import FrozenWhisperConfig
from xycodec.models.autoencoder.model import Autoencoder, FrozenWhisper
from xycodec.train.init.xcodec import fill_self_supervised


def start_encoder(autoencoder: Autoencoder, source: str) -> None:
    """Give an autoencoder the frozen encoder of `source`, as a recipe's `encoder` names it.

    Raises CheckpointError, one line, if it gives no such model, ConfigError if that is of another size.
    """
    config, encoder = autoencoder.config.encoder, autoencoder.encoder
    if isinstance(encoder, FrozenWhisper) and isinstance(config, FrozenWhisperConfig):
        found = find_whisper(source)
        positions = autoencoder.config.window_frames
        found.require("encoder", config, n_mels=config.n_mels, positions=positions, setting="model.window_frames")
        found.fill(encoder.tower)
    elif not isinstance(encoder, FrozenWhisper):
        fill_self_supervised(encoder.model, source)
