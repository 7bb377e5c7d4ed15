"""The embedders that an evaluation asks for, by the options of the command line."""

from pathlib import Path

from xycodec.eval.generation.embedders.base import Embedder


def make_embedders(
    *,
    panns: Path | None = None,
    vggish: Path | None = None,
    mert: str | None = None,
    clap: str | None = None,
    log_mel_statistics: bool = False,
    keep_level: bool = False,
    device: str = "auto",
) -> list[Embedder]:
    """The embedders that are asked for; None leaves one out.

    Args:
        panns: file of the authors' Cnn14 weights, for 16 or 32 kHz.
        vggish: file in torchvggish's layout.
        mert: folder or hub id of MERT-v1-95M.
        clap: folder or hub id of a CLAP of Transformers.
        log_mel_statistics: vectors without a network, for trials.
        keep_level: of clips that CLAP hears; else each has a peak of 1.
        device: as `load_codec` takes it.

    Raises CheckpointError, one line, if weights cannot be had or are not of the published layout.
    """
    embedders: list[Embedder] = []
    if panns is not None:
        from xycodec.eval.generation.embedders.panns import Panns

        embedders.append(Panns(panns, device))
    if vggish is not None:
        from xycodec.eval.generation.embedders.vggish import Vggish

        embedders.append(Vggish(vggish, device))
    if mert is not None:
        from xycodec.eval.generation.embedders.mert import Mert

        embedders.append(Mert(mert, device))
    if clap is not None:
        from xycodec.eval.generation.embedders.clap import Clap

        embedders.append(Clap(clap, device, keep_level=keep_level))
    if log_mel_statistics:
        from xycodec.eval.generation.embedders.log_mel_statistics import LogMelStatistics

        embedders.append(LogMelStatistics())
    return embedders
