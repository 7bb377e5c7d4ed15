import io

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from tests.training import clip

from xycodec.baselines.opus import Opus
from xycodec.errors import XycodecError
from xycodec.models.longform import decode_long, encode_long

NONE = 256


def libsndfile_stream(audio, kbps):
    """Ogg stream of libsndfile for a clip that is filled up to whole frames, and one packet longer."""
    frames = -(-len(audio) // 320)
    audio = torch.nn.functional.pad(audio, (0, frames * 320 + 216 - len(audio)))
    stream = io.BytesIO()
    with sf.SoundFile(stream, "w", 16_000, 1, "OPUS", format="OGG", compression_level=(256 - kbps) / 250) as file:
        file.write(audio.numpy())
    return stream.getvalue()


def packets_of(stream):
    """The packets of an Ogg stream, without its headers."""
    with av.open(io.BytesIO(stream)) as container:
        return [bytes(packet) for packet in container.demux() if packet.size]


@pytest.mark.parametrize(("kbps", "samples"), [(6, 16_000), (12, 20_001), (12, 319)])
def test_codes_are_the_packets_of_libsndfile_and_decode_as_it_does(kbps, samples):
    codec, audio = Opus(kbps), clip(3, 2.0).audio[:samples]
    stream = libsndfile_stream(audio, kbps)
    codes = codec.encode(audio[None]).codes[0]
    frames = -(-samples // 320)
    assert codes.shape == (codec.n_q, frames)
    assert [bytes(row[row != NONE].tolist()) for row in codes.T] == packets_of(stream)[:frames]
    whole = decode_long(codec, codes, num_samples=samples).numpy()
    assert len(whole) == samples
    theirs, _ = sf.read(io.BytesIO(stream), dtype="float32")
    # What the last kept packet says of; the rest needs the next one.
    sure = min(samples, frames * 320 - 104)
    np.testing.assert_array_equal(whole[:sure], theirs[:sure])


def test_bits_are_those_of_the_packets():
    codec, audio = Opus(12), clip(4, 3.0).audio
    stream = libsndfile_stream(audio, 12)
    bits = 8 * sum(map(len, packets_of(stream)[:150]))
    codes = encode_long(codec, audio)
    assert codec.payload_bits(codes) == bits
    assert 0.4 < bits / 3 / codec.bitrate < 1.2
    assert (codec.bitrate, codec.frame_rate) == (12_000, 50)


def test_more_kilobits_are_nearer_to_the_original():
    audio = clip(5, 3.0).audio
    errors, bits = [], []
    for kbps in (6, 16, 64):
        codec = Opus(kbps)
        codes = encode_long(codec, audio)
        errors.append((decode_long(codec, codes, num_samples=len(audio)) - audio).square().mean().item())
        bits.append(codec.payload_bits(codes))
    assert errors == sorted(errors, reverse=True)
    assert bits == sorted(bits)


def test_decoded_audio_is_neither_late_nor_early():
    audio = clip(6, 3.0).audio.numpy()
    for kbps in (6, 12, 24):
        codec = Opus(kbps)
        decoded = decode_long(codec, encode_long(codec, audio), num_samples=len(audio)).numpy()
        lags = range(-40, 41)
        inner = audio[100:-100]
        products = [inner @ decoded[100 + lag : len(audio) - 100 + lag] for lag in lags]
        assert abs(lags[int(np.argmax(products))]) <= 1


def test_clips_of_a_batch_are_those_alone(threads):
    codec = Opus(8)
    clips = [clip(number, 1.0).audio[:length] for number, length in enumerate((16_000, 5000, 1, 0, 320))]
    threads(2)
    out = codec.encode(
        torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([16_000, 5000, 1, 0, 320])
    )
    audio = codec.decode(out.codes, out.lengths)
    assert out.lengths.tolist() == [50, 16, 1, 0, 1]
    assert audio.lengths.tolist() == [16_000, 5120, 320, 0, 320]
    for number, one in enumerate(clips):
        alone = codec.encode(one[None])
        assert torch.equal(alone.codes[0], out.codes[number, :, : out.lengths[number]])
        assert torch.equal(codec.decode(alone.codes).audio[0], audio.audio[number, : audio.lengths[number]])


def test_what_is_not_opus_is_refused():
    codec = Opus(6)
    with pytest.raises(XycodecError, match=r"^opus-5k: Opus is for 6 to 64 kbit/s here$"):
        Opus(5)
    gap = torch.full((1, codec.n_q, 2), NONE)
    gap[0, 0], gap[0, 2] = 8, 1
    for codes in (gap, torch.full((1, codec.n_q, 2), NONE)):
        with pytest.raises(XycodecError, match="codes are no Opus packets: each begins with bytes and ends with 256"):
            codec.decode(codes)
    with pytest.raises(XycodecError, match="opus-6k cannot leave out layers, got n_q 8"):
        codec.encode(torch.zeros(1, 320), n_q=8)
    with pytest.raises(XycodecError, match="opus-6k has no embeddings"):
        codec.embed(codec.encode(torch.zeros(1, 320)).codes)
    codec.n_q = 8
    with pytest.raises(XycodecError, match=r"opus-6k: a packet of [0-9]+ bytes, room is for 8: ask for more kbit/s"):
        codec.encode(clip(1, 1.0).audio[None])
