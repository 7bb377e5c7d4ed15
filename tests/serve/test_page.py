"""What the page shows, without a browser; tests/serve/test_browser.py presses its buttons."""

import asyncio
import base64
import io
import re
from pathlib import Path

import pytest
import soundfile as sf
from tests.serve.servers import audio_file, speech, tiny_codec

from xycodec.io.xyc import CodecFile
from xycodec.serve import page
from xycodec.serve.problems import Problem
from xycodec.serve.service import Service
from xycodec.serve.settings import Settings


@pytest.fixture(scope="module")
def codec():
    return tiny_codec(output_sample_rate=24_000)


def hear(codec, path, n_q=2):
    """What the page shows of a file, and the code file's bytes."""

    async def run():
        service = Service(Settings(workers=1, page=False), {codec.model_id: codec})
        await service.start()
        try:
            heard = await page._hear(service, path, codec.model_id, n_q)
            return heard, Path(heard.codes).read_bytes()
        finally:
            await service.stop()

    return asyncio.run(run())


def test_players_facts_picture_and_codes(codec, tmp_path):
    source = tmp_path / "talk.flac"
    source.write_bytes(audio_file(speech(30_000), container="FLAC"))
    heard, codes = hear(codec, source)
    assert codes == codec.encode_file(source, n_q=2).to_bytes()
    assert Path(heard.codes).name == "talk.xyc"
    sounds = [base64.b64decode(part) for part in re.findall(r"audio/flac;base64,([^\"]+)", heard.players)]
    (before, rate), (after, output_rate) = (sf.read(io.BytesIO(sound)) for sound in sounds)
    assert (rate, output_rate) == (16_000, 24_000)
    assert (len(before), len(after)) == (30_000, 45_000)
    (picture,) = re.findall(r"image/png;base64,([^\"]+)", heard.picture)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    file = CodecFile.from_bytes(codes)
    for part in ("1.88 s", f"{file.bitrate:,.0f} bit/s", f"{file.num_bytes:,} bytes", "STOI", "mel"):
        assert part in heard.facts


@pytest.mark.parametrize(("data", "status"), [(b"no audio", 415), (audio_file(speech(121 * 8000), 8000), 413)])
def test_what_it_does_not_take(codec, tmp_path, data, status):
    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(Problem) as error:
        hear(codec, tmp_path / "x.wav")
    assert error.value.status == status
