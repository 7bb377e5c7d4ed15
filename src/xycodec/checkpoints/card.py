"""The model card that is saved beside a codec's weights: what it is, and how to use it."""

from xycodec.models.base import Codec

CARD_FILE = "README.md"

_CARD = """\
---
library_name: xycodec
pipeline_tag: audio-to-audio
tags:
- speech
- audio
- codec
- speech-tokenizer
---

# {name}

A neural speech codec of class `{kind}`: {bitrate:,.0f} bit/s, {frame_rate:g} frames a second of {n_q} codebooks with
{codebook_size:,} codes each. It takes speech at {input_sample_rate:,} Hz and gives {output_sample_rate:,} Hz back.

```python
from xycodec import load_codec, read_audio

codec = load_codec("{source}")
codec.encode_file("talk.wav").write("talk.xyc")  # any length
codec.decode_file("talk.xyc", "talk.decoded.wav")

out = codec.encode(read_audio("talk.wav", codec.input_sample_rate))  # out.codes (1, {n_q}, frames)
audio = codec.decode(out).audio  # (1, samples)
```

Needs `pip install xycodec`. Write here what it was trained on, how good it is, and under which licence it comes.
"""


def model_card(codec: Codec, source: str) -> str:
    """The card of a codec, in Markdown with the hub's front matter; `source` is what `load_codec` will be given."""
    return _CARD.format(
        name=codec.model_id,
        kind=type(codec).__name__,
        source=source,
        bitrate=codec.bitrate,
        frame_rate=codec.frame_rate,
        n_q=codec.n_q,
        codebook_size=codec.codebook_size,
        input_sample_rate=codec.input_sample_rate,
        output_sample_rate=codec.output_sample_rate,
    )
