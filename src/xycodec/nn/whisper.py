"""Whisper's encoder, and its mirror image that turns rows back into vocoder features."""

from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import convolve
from xycodec.nn.transformer import Transformer


class WhisperEncoder(Transformer):
    """Two convolutions (the second halves the rate), then a transformer (docs/models/xy_tokenizer.md, Transformer)."""

    def __init__(self, *, n_mels: int, d_model: int, layers: int, heads: int, ffn_dim: int, max_positions: int) -> None:
        super().__init__(d_model=d_model, layers=layers, heads=heads, ffn_dim=ffn_dim, max_positions=max_positions)
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel: Tensor, rows: int, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, n_mels, L) at 100 Hz -> (B, rows, D) at 50 Hz, zero on padded rows; row 0 has position `first`.

        Row t sees mel frames 2t-2 to 2t+2, so a clip of L frames keeps its `rows` = L // 2 rows exactly as in
        a longer padding if `mel` holds L + 1 frames or more.
        """
        return self.transform(self.stem(mel, rows), mask, first)

    def stem(self, mel: Tensor, rows: int) -> Tensor:
        """(B, n_mels, L) -> what the transformer reads (B, rows, D)."""
        h = F.gelu(convolve(mel.transpose(1, 2), self.conv1))
        return F.gelu(convolve(h, self.conv2))[:, :rows]


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

        Output frame t depends on rows up to t // 2 only, so padding after a clip changes none of its frames;
        frames past the clip are not zero (biases).
        """
        h = self.transform(x, mask, first).transpose(1, 2)
        features = F.gelu(self.deconv2(F.gelu(self.deconv1(h))))
        return features[..., : 2 * x.shape[1]]
