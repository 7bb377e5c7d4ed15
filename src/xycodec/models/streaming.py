"""Streams: audio to codes and codes to audio block by block, each result as soon as what it depends on has come.

What a stream gives, joined, is what `encode_long` and `decode_long` give of the whole with the same windows, however
the blocks are cut: the same windows are computed, at the same shapes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xycodec.errors import XycodecError
from xycodec.models.inputs import Array, read_block
from xycodec.models.longform import TENSORS, WindowCodec, read_one_item
from xycodec.models.windows import BATCH, FADE, Cutter, Held, Joiner, Piece, Windows, choose_windows


@dataclass(frozen=True)
class StreamState:
    """All that a stream remembers between blocks. It never changes, so that it may be kept, copied and put back."""

    held: Held = field(default_factory=Held)
    """Input that later windows need."""
    tail: Tensor | None = None
    """Results that the next window fades in over or takes the place of."""
    taken: int = 0
    """Samples or frames that came."""
    given: int = 0
    """Frames or samples that went out."""
    layers: int | None = None
    """Layers of the codes, of a decoder that has had some."""


class _Stream(ABC):
    """The part that both directions share: windows are cut from blocks, computed, and joined.

    `push` and `flush` do it all. A server that computes the windows of many streams together calls `cut` and `end`,
    computes the windows itself, and gives the results to `join` in order; `rest` ends the clip.
    """

    def __init__(self, codec: WindowCodec, windows: Windows | None, units: tuple[int, int], fade: int) -> None:
        if codec.reference:
            raise XycodecError("a stream follows the length-true rule: load the codec without reference")
        self.codec, self.windows = codec, choose_windows(codec, windows=windows)
        self._cutter = Cutter(self.windows, units[0], TENSORS)
        self._joiner = Joiner(self.windows, units[1], TENSORS, fade)
        self._taken, self._given = 0, 0
        self._layers: int | None = None

    @property
    def latency_s(self) -> float:
        """Seconds of signal, at most, from the beginning of a frame to when its result is known."""
        return self.windows.latency / self.codec.frame_rate

    @property
    def state(self) -> StreamState:
        """State of the stream; setting it goes on from there, in this or in another stream of the same settings."""
        return StreamState(self._cutter.state, self._joiner.state, self._taken, self._given, self._layers)

    @state.setter
    def state(self, state: StreamState) -> None:
        self._cutter.state, self._joiner.state = state.held, state.tail
        self._taken, self._given, self._layers = state.taken, state.given, state.layers

    def reset(self) -> None:
        """Forget everything: the next block begins another clip."""
        self.state = StreamState()

    def cut(self, block: Array) -> list[Piece]:
        """Take a block, and return the windows that are whole with it. Raises as `push`."""
        read = self._read(block)
        self._taken += read.shape[-1]
        return list(self._cutter.cut(read))

    def end(self) -> list[Piece]:
        """Return the last window of the clip, where one is left to compute."""
        return list(self._cutter.end())

    @abstractmethod
    def compute(self, items: list[Tensor]) -> list[Tensor]:
        """Results of windows."""

    def join(self, results: Sequence[Tensor], pieces: Sequence[Piece]) -> Tensor:
        """Return the part that the results of windows add to that of the clip."""
        joined = torch.cat([self._nothing(), *self._joiner.joined(results, pieces)], dim=-1)
        self._given += joined.shape[-1]
        return joined

    def rest(self) -> Tensor:
        """Return what is left when all windows are joined, and begin another clip."""
        tail = self._joiner.end()
        nothing = self._nothing()
        self.reset()
        return nothing if tail is None else tail

    def _run(self, pieces: Sequence[Piece]) -> Tensor:
        """Compute windows, a few in a call, and join them."""
        parts = [self._nothing()]
        with torch.no_grad():
            for start in range(0, len(pieces), BATCH):
                batch = pieces[start : start + BATCH]
                parts.append(self.join(self.compute([piece.items for piece in batch]), batch))
        return torch.cat(parts, dim=-1)

    @abstractmethod
    def _read(self, block: Array) -> Tensor:
        """A block, checked, as a copy: the caller may reuse its array."""

    @abstractmethod
    def _nothing(self) -> Tensor:
        """Result of no windows."""


class StreamingEncoder(_Stream):
    """Audio to codes, block by block.

    `codec` is any `xycodec.Codec`. `windows` are by default those of `encode` and `encode_long`: as long as the
    model's, with a third of it shared. Shorter ones have a shorter latency, and codes that differ from the default
    ones: those that `encode_long` gives with the same windows. `n_q` and `search` are those of `encode`.

    Raises XycodecError on windows that the codec cannot compute, and on a codec in `reference` mode.
    """

    def __init__(
        self, codec: WindowCodec, windows: Windows | None = None, *, n_q: int | None = None, search: int = 1
    ) -> None:
        super().__init__(codec, windows, (codec.hop_length, 1), 0)
        self.n_q, self.search = codec.check_layers(n_q), codec.check_search(search)

    def push(self, audio: Array) -> Tensor:
        """Take a block of audio, and return the codes (n_q, L) int64 that are known now; L is often 0.

        `audio` (T,) is at the codec's input rate, floats in [-1, 1] or int16. Raises AudioError on anything else.
        """
        return self._run(self.cut(audio))

    def flush(self) -> Tensor:
        """End the clip, return the rest of its codes (n_q, L) int64, and begin another."""
        return torch.cat([self._run(self.end()), self.rest()], dim=-1)

    @property
    def num_samples(self) -> int:
        """Samples of the clip that came so far."""
        return self._taken

    def compute(self, items: list[Tensor]) -> list[Tensor]:
        """Codes of windows of audio."""
        return [item.cpu() for item in self.codec.encode_windows(items, self.n_q, self.search)]

    def _read(self, block: Array) -> Tensor:
        return read_block(block).to("cpu", copy=True)

    def _nothing(self) -> Tensor:
        return torch.zeros(self.n_q, 0, dtype=torch.int64, device="cpu")


class StreamingDecoder(_Stream):
    """Codes to audio, block by block.

    `codec` and `windows` are as those of `StreamingEncoder`, and the audio equals `decode_long` of all codes with the
    same windows. Where windows hear as far as the decoder does (`Windows.around` what `measure_receptive_field` finds),
    that is what the model decodes in one piece, but for rounding.
    """

    def __init__(self, codec: WindowCodec, windows: Windows | None = None) -> None:
        self._hop = codec.num_output_samples(codec.hop_length)
        super().__init__(codec, windows, (1, self._hop), FADE)

    def push(self, codes: Array) -> Tensor:
        """Take codes (k, L) of any integer type, and return the audio (T,) float32 that is known now.

        All blocks of a clip have the same k <= n_q. Raises XycodecError on other shapes, types and values.
        """
        return self._run(self.cut(codes))

    def flush(self, num_samples: int | None = None) -> Tensor:
        """End the clip, return the rest of its audio (T,) float32, and begin another.

        `num_samples` is the length of the original at the codec's input rate; by default the frames are whole.
        Raises XycodecError where the codes that came are not of that length, and goes on as if it had not been called.
        """
        left = self.samples_left(num_samples)
        return torch.cat([self._run(self.end()), self.rest()])[:left]

    def samples_left(self, num_samples: int | None = None) -> int:
        """Samples that are still to go out of a clip that ends here. Raises as `flush`."""
        if num_samples is None:
            return self._taken * self._hop - self._given
        frames, left = self.codec.num_frames(num_samples), self.codec.num_output_samples(num_samples) - self._given
        if frames != self._taken or left < 0:
            raise XycodecError(
                f"{self._taken} frames do not belong to {num_samples} samples, which are {frames} frames"
            )
        return left

    def compute(self, items: list[Tensor]) -> list[Tensor]:
        """Audio of windows of codes."""
        return [item.cpu() for item in self.codec.decode_windows(items)]

    def _read(self, block: Array) -> Tensor:
        codes = read_one_item(self.codec, block).clone()
        if self._layers not in (None, len(codes)):
            raise XycodecError(f"{len(codes)} layers of codes follow {self._layers}: a clip has the same all through")
        self._layers = len(codes)
        return codes

    def _nothing(self) -> Tensor:
        return torch.zeros(0, dtype=torch.float32, device="cpu")
