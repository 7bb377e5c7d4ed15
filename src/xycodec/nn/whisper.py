"""Whisper's encoder, and its mirror image that turns its frames back into features for a vocoder."""

from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import convolve
from xycodec.nn.transformer import Transformer


class WhisperEncoder(Transformer):
    """Two convolutions (the second halves the rate), then a transformer (docs/models/xy_tokenizer.md, Transformer).

    Without `stem_gelu` nothing follows the convolutions, unlike in a Whisper.
    """

    def __init__(
        self,
        *,
        n_mels: int,
        d_model: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        max_positions: int,
        stem_gelu: bool = True,
    ) -> None:
        super().__init__(d_model=d_model, layers=layers, heads=heads, ffn_dim=ffn_dim, max_positions=max_positions)
        self.stem_gelu = stem_gelu
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel: Tensor, frames: int, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, n_mels, L) at 100 Hz -> (B, frames, D) at 50 Hz, zero on padding; frame 0 has position `first`.

        Frame t depends on mel frames 2t-2 to 2t+2, so the `frames` = L // 2 of a clip of L mel frames are the same in
        any longer padding if `mel` holds L + 1 mel frames or more.
        """
        return self.transform(self.stem(mel, frames), mask, first)

    def stem(self, mel: Tensor, frames: int) -> Tensor:
        """Log-mel (B, n_mels, L) -> the transformer's input (B, frames, D)."""
        h = convolve(mel.transpose(1, 2), self.conv1)
        h = convolve(F.gelu(h) if self.stem_gelu else h, self.conv2)
        return (F.gelu(h) if self.stem_gelu else h).narrow(1, 0, frames)


class AcousticDecoder(Transformer):
    """A transformer, then two transposed convolutions (the first doubles the rate).

    See docs/models/xy_tokenizer.md, Transformer.
    """

    def __init__(self, *, n_mels: int, d_model: int, layers: int, heads: int, ffn_dim: int, max_positions: int) -> None:
        super().__init__(d_model=d_model, layers=layers, heads=heads, ffn_dim=ffn_dim, max_positions=max_positions)
        self.deconv1 = nn.ConvTranspose1d(d_model, d_model, 3, stride=2)
        self.deconv2 = nn.ConvTranspose1d(d_model, n_mels, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, T, D) at 50 Hz -> (B, n_mels, 2T) at 100 Hz: features for the vocoder, not log-mel values.

        Output frame t depends on input frames up to t // 2 only, so padding after a clip changes none of its frames;
        frames past the clip are not zero (biases).
        """
        h = self.transform(x, mask, first).transpose(1, 2)
        features = F.gelu(self.deconv2(F.gelu(self.deconv1(h))))
        return features[..., : 2 * x.shape[1]]
