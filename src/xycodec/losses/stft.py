"""Distances between decoded and true audio for X-Codec's training: of spectrograms, and one of waveforms.

See docs/models/x_codec.md, Training.

Each is a `Mean` that is still open. An item counts as it would alone: what lies past its length is never read, and
its end is reflected where it is, however far the batch is padded.
"""

import torch
from torch import Tensor, nn

from xycodec.nn.mean import Mean, average_of, masked_mean, sum_of
from xycodec.nn.mel import magnitudes, mel_filterbank
from xycodec.nn.pqmf import SubbandAnalysis

# Samples of the FFT, of its window and of the hop.
FULL_BAND = ((512, 480, 120), (1024, 960, 240), (2048, 1200, 300))
SUB_BAND = ((128, 80, 20), (256, 120, 40), (256, 200, 50))


class FullBandStft(nn.Module):
    """Spectral convergence plus L1 distance of log magnitudes, each the average over `FULL_BAND`.

    Spectral convergence is the Frobenius norm of the difference of an item's magnitudes over that of the true ones.
    Of several items it is the ratio of the sums of norms, so that a silent one does not outweigh the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_StftDistance(*sizes) for sizes in FULL_BAND)

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor | None = None) -> Mean:
        """Distance of (B, T) to (B, T) over `lengths` (B,) samples of each item, all without; float32, 6 entries."""
        with torch.autocast(decoded.device.type, enabled=False):
            lengths = _lengths_of(target, lengths)
            return _average(self.scales, decoded.float()[:, None], target.float()[:, None], lengths)


class SubBandStft(nn.Module):
    """The distances of `FullBandStft` of six bands of the audio, averaged over `SUB_BAND`; norms are over all bands."""

    def __init__(self) -> None:
        super().__init__()
        self.analysis = SubbandAnalysis()
        self.scales = nn.ModuleList(_StftDistance(*sizes) for sizes in SUB_BAND)

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor | None = None) -> Mean:
        """Distance of (B, T) to (B, T) over `lengths` (B,) samples of each item, all without; float32, 6 entries."""
        with torch.autocast(decoded.device.type, enabled=False):
            lengths = _lengths_of(target, lengths)
            # The filters reach past an item's end.
            past = torch.arange(target.shape[1], device=target.device) >= lengths[:, None]
            decoded, target = (self.analysis(audio.float().masked_fill(past, 0)) for audio in (decoded, target))
            return _average(self.scales, decoded, target, self.analysis.num_samples(lengths))


class LogMelDistance(nn.Module):
    """L1 distance of the logarithms of 80 mel magnitudes, not below 1e-5, up to Nyquist.

    Sizes are X-Codec's. Slaney's filters and the natural logarithm are our choice: its paper leaves them open.
    """

    floor = 1e-5
    filters: Tensor

    def __init__(self, sample_rate: int, *, n_fft: int = 1024, window: int = 800, hop: int = 160) -> None:
        super().__init__()
        self.spectrogram = _Spectrogram(n_fft, window, hop)
        # Derived, so not in checkpoints.
        self.register_buffer("filters", mel_filterbank(n_fft, 80, sample_rate), persistent=False)

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor | None = None) -> Mean:
        """Distance of (B, T) to (B, T) over `lengths` (B,) samples of each item, all without; float32, 1 entry."""
        with torch.autocast(decoded.device.type, enabled=False):
            lengths = _lengths_of(target, lengths)
            difference = self._log_mel(decoded.float(), lengths) - self._log_mel(target.float(), lengths)
            return masked_mean(difference.abs().mean(dim=2), self.spectrogram.frame_mask(difference, lengths))

    def _log_mel(self, audio: Tensor, lengths: Tensor) -> Tensor:
        mel: Tensor = self.spectrogram(audio, lengths) @ self.filters
        return mel.clamp_min(self.floor).log()


class WaveformDistance(nn.Module):
    """The norm of the difference of an item's samples over that of the true ones (ours: not in the paper).

    It alone knows phase, without which a decoder that has just begun makes noise of the right spectrum: it whispers. Of
    several items it is the ratio of the sums of norms.
    """

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor | None = None) -> Mean:
        """Distance of (B, T) to (B, T) over `lengths` (B,) samples of each item, all without; float32, 1 entry."""
        with torch.autocast(decoded.device.type, enabled=False):
            past = torch.arange(target.shape[1], device=target.device) >= _lengths_of(target, lengths)[:, None]
            decoded, target = (audio.float().masked_fill(past, 0) for audio in (decoded, target))
            difference, size = (torch.linalg.vector_norm(x, dim=1) for x in (decoded - target, target))
            return Mean(difference.sum()[None], size.sum()[None])


def _average(scales: nn.ModuleList, decoded: Tensor, target: Tensor, lengths: Tensor) -> Mean:
    """Average over scales of the distances of (B, bands, T), of which the first `lengths` (B,) samples count."""
    distances = [scale(decoded, target, lengths) for scale in scales]
    return sum_of([average_of(means) for means in zip(*distances, strict=True)])


class _StftDistance(nn.Module):
    """Spectral convergence, and L1 distance of log magnitudes, at one resolution."""

    def __init__(self, n_fft: int, window: int, hop: int) -> None:
        super().__init__()
        self.spectrogram = _Spectrogram(n_fft, window, hop)

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor) -> tuple[Mean, Mean]:
        items, bands = target.shape[:2]
        lengths = lengths.repeat_interleave(bands)
        real, fake = (self.spectrogram(audio.flatten(0, 1), lengths) for audio in (target, decoded))
        inside = self.spectrogram.frame_mask(real, lengths)
        logarithm = masked_mean((real.log() - fake.log()).abs().mean(dim=2), inside)
        difference, size = (
            torch.linalg.vector_norm((x * inside[..., None]).reshape(items, -1), dim=1) for x in (real - fake, real)
        )
        return Mean(difference.sum()[None], size.sum()[None]), logarithm


class _Spectrogram(nn.Module):
    """Magnitudes at one resolution, not below the root of 1e-7, of items of uneven lengths."""

    floor = 1e-7**0.5
    hann: Tensor

    def __init__(self, n_fft: int, window: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        # Derived, so not in checkpoints.
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """(N, T), T and N at least 1 -> (N, T // hop + 1, n_fft // 2 + 1); see `frame_mask` for which of them count."""
        frames = audio.shape[1] // self.hop + 1
        endless = _mirrored(audio, lengths, self.n_fft // 2)
        return magnitudes(endless, self.hann, n_fft=self.n_fft, hop=self.hop)[:, :frames].clamp_min(self.floor)

    def frame_mask(self, spectrogram: Tensor, lengths: Tensor) -> Tensor:
        """(N, frames), True on the `lengths // hop + 1` frames that an item has alone; on none of an empty one."""
        centres = torch.arange(spectrogram.shape[1], device=lengths.device) * self.hop
        return (centres <= lengths[:, None]) & (lengths > 0)[:, None]


def _mirrored(audio: Tensor, lengths: Tensor, margin: int) -> Tensor:
    """(N, T) -> (N, T + margin): past its length an item goes on to and fro."""
    turn = (2 * lengths - 2).clamp_min(1)[:, None]
    place = torch.arange(audio.shape[1] + margin, device=audio.device) % turn
    return audio.gather(1, torch.minimum(place, turn - place))


def _lengths_of(audio: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return torch.full((len(audio),), audio.shape[1], device=audio.device)
    return lengths.to(audio.device, non_blocking=True)
