"""The judges that an evaluation asks for, by name."""

from xycodec.errors import XycodecError
from xycodec.eval.judges.base import Judge


def make_judges(
    similarity: str | None = None,
    recogniser: str | None = None,
    opinion: str | None = None,
    device: str = "auto",
    *,
    normaliser: str | None = None,
    language: str = "en",
) -> list[Judge]:
    """The judges that are asked for; None leaves a metric out.

    Args:
        similarity: speaker model: a hub id or folder of Transformers with an x-vector model, such as
            `microsoft/wavlm-base-plus-sv`; the file `wavlm_large_finetune.pth` of UniSpeech; or `resemblyzer`.
        recogniser: a hub id or folder of Transformers with a CTC model, such as `facebook/hubert-large-ls960-ft`, or
            with a Whisper.
        opinion: `dnsmos`, `utmos`, or both with a comma between.
        device: as `load_codec` takes it.
        normaliser: `plain` or `whisper`, what English texts go through before words are compared; None: the first for
            CTC models, the second for Whisper. Texts of other languages always go through the first.
        language: of clips that name none, which a multilingual Whisper is told to write; a code or an English name.

    Raises XycodecError, one line, if a model cannot be had or the package it needs is not installed.
    """
    judges: list[Judge] = []
    if similarity is not None:
        from xycodec.eval.judges.speaker import SpeakerSimilarity, load_voice

        judges.append(SpeakerSimilarity(load_voice(similarity, device)))
    if recogniser is not None:
        from xycodec.eval.judges.recognition import Recognition, load_transcriber

        judges.append(Recognition(load_transcriber(recogniser, device), normaliser, language))
    for name in opinion.split(",") if opinion is not None else ():
        from xycodec.eval.judges.opinion import OPINIONS

        if name not in OPINIONS:
            raise XycodecError(f"no opinion is called {name!r}: there are {' and '.join(OPINIONS)}")
        judges.append(OPINIONS[name](device))
    return judges
