"""Opus, encoded through PyAV and decoded through libsndfile, for comparison."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from torch import Tensor

from xycodec.baselines.classical import WINDOW_S, ClassicalCodec
from xycodec.errors import XycodecError
from xycodec.io.rate import SPEECH_RATE

LOWEST, HIGHEST = 6, 64  # kbit/s
_NONE = 256
_CLOCK = 3  # Opus counts at 48 kHz
_PRE_SKIP = 312  # what libopus is late by, at 48 kHz; readers leave it out


class Opus(ClassicalCodec):
    """Opus at 16 kHz: packets of 20 ms, variable bitrate around `kbps` (6 to 64), libopus's mode for any audio.

    Codes are the bytes of a packet, and 256 where it has no more. A stretch that needs packets of more than four times
    the mean raises XycodecError.
    """

    RATE = SPEECH_RATE

    def __init__(self, kbps: int) -> None:
        if not LOWEST <= kbps <= HIGHEST:
            raise XycodecError(f"opus-{kbps}k: Opus is for {LOWEST} to {HIGHEST} kbit/s here")
        hop = self.RATE // 50
        super().__init__(
            model_id=f"opus-{kbps}k",
            input_sample_rate=self.RATE,
            output_sample_rate=self.RATE,
            n_q=4 * kbps * 1000 // 50 // 8,
            codebook_size=_NONE + 1,
            hop_length=hop,
            window_frames=round(WINDOW_S * self.RATE / hop),
        )
        self.kbps = kbps

    @property
    def bitrate(self) -> float:
        """Target bitrate of libopus, bits a second; `payload_bits` tells what a clip took."""
        return self.kbps * 1000.0

    def payload_bits(self, codes: Tensor) -> int:
        """Bits of a clip's packets."""
        return 8 * int((codes != _NONE).sum())

    def _encode_one(self, audio: NDArray[np.float64]) -> NDArray[np.int64]:
        frames, hop = self.num_frames(len(audio)), self.hop_length
        # One packet more than is kept: the last one has what libopus is late by.
        padded = np.zeros((frames + 1) * hop, np.float32)
        padded[: len(audio)] = audio
        encoder = av.CodecContext.create("libopus", "w")
        encoder.sample_rate, encoder.layout, encoder.format = self.RATE, "mono", "flt"
        encoder.bit_rate, encoder.time_base = self.kbps * 1000, Fraction(1, self.RATE)
        packets: list[bytes] = []
        for samples in np.split(padded[None], frames + 1, axis=1):
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate = self.RATE
            packets += map(bytes, encoder.encode(frame))
        packets = packets[:frames]
        longest = max(map(len, packets))
        if longest > self.n_q:
            raise XycodecError(
                f"{self.model_id}: a packet of {longest} bytes, room is for {self.n_q}: ask for more kbit/s"
            )
        codes = np.full((frames, self.n_q), _NONE)
        for row, packet in zip(codes, packets, strict=True):
            row[: len(packet)] = list(packet)
        return codes.T

    def _decode_one(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        packets = [_packet(frame) for frame in codes.T]
        # The last 6.5 ms would come with the next packet; one without content lets the decoder go on as it sees fit.
        packets.append(bytes([packets[-1][0] & 0xFC]))
        stream = io.BytesIO()
        with av.open(stream, "w", format="ogg") as container:
            track = container.add_stream("libopus", self.RATE, layout="mono")
            track.codec_context.extradata = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, _PRE_SKIP, self.RATE, 0, 0)
            step = self.hop_length * _CLOCK
            for number, content in enumerate(packets):
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.duration = track, Fraction(1, self.RATE * _CLOCK), step
                packet.pts = packet.dts = number * step - _PRE_SKIP
                container.mux(packet)
        stream.seek(0)
        try:
            audio, _ = sf.read(stream, codes.shape[1] * self.hop_length, dtype="float32")
        except sf.LibsndfileError as error:
            raise XycodecError(f"codes are no Opus that can be decoded ({error.error_string})") from None
        decoded: NDArray[np.float32] = audio
        return decoded


def _packet(frame: NDArray[np.int64]) -> bytes:
    length = int((frame != _NONE).sum())
    if not length or (frame[:length] == _NONE).any():
        raise XycodecError(f"codes are no Opus packets: each begins with bytes and ends with {_NONE}")
    return bytes(frame[:length].tolist())
