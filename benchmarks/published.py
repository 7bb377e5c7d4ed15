"""The published inference computation, written from its description, as the yardstick for speed.

Every clip is zero-padded to the model's window (30 s), both towers run over all 1500 rows, the attention mask
and the scores are materialised, and every quantizer layer runs over 375 rows. Weights are those of one of our
codecs, so the two sides can be timed, and their codes compared, in one process.

Where the published code does a little more still, this does less: weight norm is folded once, tensors live on
one device, and nothing is converted between them. Ratios against it are therefore cautious.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.transformer import Adapter, Transformer, TransformerLayer
from xycodec.nn.vocos import ConvNeXtBlock
from xycodec.nn.whisper import WhisperEncoder

STFT_HOP = 160  # samples per mel frame at 16 kHz


@dataclass(frozen=True)
class _Attention:
    """Queries, keys and values apart, as published; each weight is contiguous."""

    layer: TransformerLayer
    q: Tensor
    k: Tensor
    v: Tensor

    @staticmethod
    def of(layer: TransformerLayer) -> "_Attention":
        return _Attention(layer, *(part.contiguous() for part in layer.self_attn.qkv_weight.detach().chunk(3)))


class PublishedXYTokenizer:
    """Encode and decode as published, with the weights of `codec` (folded, float32, on one device)."""

    def __init__(self, codec: XYTokenizer) -> None:
        self.codec = codec
        self.window_samples = codec.window_samples
        self.layers = {
            module: [_Attention.of(layer) for layer in module.layers]  # type: ignore[arg-type]
            for module in codec.modules()
            if isinstance(module, Transformer)
        }
        down, up = codec.downsample, codec.upsample
        self.factor = down.factor
        # Convolutions with kernel = stride, which ours holds as matrices.
        gate, value = (
            m.weight.detach().unflatten(1, (self.factor, -1)).transpose(1, 2).contiguous()
            for m in (down.gate_proj, down.up_proj)
        )
        self.gate_kernel, self.up_kernel = gate, value
        self.upsample_kernel = up.proj.weight.detach().unflatten(0, (up.factor, -1)).permute(2, 1, 0).contiguous()
        self.quantizer_in = codec.quantizer.input_proj.weight.detach()[..., None].contiguous()
        self.quantizer_out = codec.quantizer.output_proj.weight.detach()[..., None].contiguous()

    # ---- the interface -------------------------------------------------------------------------

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (n,) at 16 kHz, at most 30 s -> codes (n_q, L) int64 with L = floor(ceil(n / 160) / 8)."""
        return self.encode_batch([audio])[0]

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n_q, L) -> audio (L * output hop,) float32."""
        return self.decode_batch([codes])[0]

    def windows(self, audio: Tensor, overlap_s: int = 10) -> list[Tensor]:
        """The windows of audio (n,) of any length: of 30 s, 30 - `overlap_s` seconds from each other."""
        step = self.window_samples - overlap_s * self.codec.input_sample_rate
        return [audio[start : start + self.window_samples] for start in range(0, audio.shape[0], step)]

    @torch.no_grad()
    def encode_batch(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Codes (n_q, L) of each clip (n,), all of them computed at the full window."""
        padded = torch.stack([F.pad(clip, (0, self.window_samples - clip.shape[0])) for clip in clips])
        rows = torch.tensor([ceil(clip.shape[0] / STFT_HOP) // 2 for clip in clips])
        latents = self._latents(self._log_mel(padded), rows)
        frames = rows // self.factor
        codes = self._quantize(latents, frames)
        return [codes[:, i, : int(count)] for i, count in enumerate(frames)]

    @torch.no_grad()
    def decode_batch(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Audio of each item (n_q, L), padded to the longest; Vocos sees the padding, as published."""
        frames = torch.tensor([item.shape[1] for item in codes])
        longest = int(frames.max())
        batch = torch.stack([F.pad(item, (0, longest - item.shape[1])) for item in codes], dim=1)
        audio = self._synthesise(self._dequantize(batch), frames)
        hop = self.codec.config.output_hop_length
        return [item[: int(count) * hop] for item, count in zip(audio, frames, strict=True)]

    # ---- audio -> codes ------------------------------------------------------------------------

    def _log_mel(self, audio: Tensor) -> Tensor:
        """(B, window) -> (B, n_mels, window / 160): docs/models/xy_tokenizer.md, Log-mel front-end."""
        mel = self.codec.mel
        spectrum = torch.stft(
            audio,
            mel.n_fft,
            STFT_HOP,
            window=mel.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum[..., :-1].abs() ** 2
        log = torch.log10((mel.filters.t() @ power).clamp(min=1e-10))
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0

    def _latents(self, mel: Tensor, rows: Tensor) -> Tensor:
        """(B, n_mels, frames) -> (B, latent_dim, frames / 8): both towers, adapters, down-sampling."""
        codec = self.codec
        joint = self._encoder(codec.acoustic_encoder, mel, rows)
        if codec.semantic_encoder is not None and codec.semantic_encoder_adapter is not None:
            semantic = self._encoder(codec.semantic_encoder, mel, rows)
            semantic = self._adapter(codec.semantic_encoder_adapter, semantic, rows)
            joint = torch.cat([semantic, joint], dim=1)
        return self._downsample(self._adapter(codec.pre_rvq_adapter, joint, rows))

    def _encoder(self, tower: WhisperEncoder, mel: Tensor, rows: Tensor) -> Tensor:
        h = F.gelu(F.conv1d(mel, tower.conv1.weight, tower.conv1.bias, padding=1))
        h = F.gelu(F.conv1d(h, tower.conv2.weight, tower.conv2.bias, stride=2, padding=1))
        return self._transform(tower, h.transpose(1, 2), rows).transpose(1, 2)

    def _adapter(self, adapter: Adapter, x: Tensor, rows: Tensor) -> Tensor:
        h = self._transform(adapter, adapter.proj(x.transpose(1, 2)), rows)
        out: Tensor = adapter.out_proj(h)
        return out.transpose(1, 2)

    def _downsample(self, x: Tensor) -> Tensor:
        down = self.codec.downsample
        gate = F.conv1d(x, self.gate_kernel, stride=self.factor).transpose(1, 2)
        value = F.conv1d(x, self.up_kernel, stride=self.factor).transpose(1, 2)
        b, d, t = x.shape
        residual = x.transpose(1, 2).reshape(b, t // self.factor, d * self.factor)
        return down.layer_norm(down.down_proj(F.silu(gate) * value) + residual).transpose(1, 2)

    def _quantize(self, x: Tensor, frames: Tensor) -> Tensor:
        """(B, latent_dim, L) -> (n_q, B, L): all layers over all rows, straight-through values subtracted."""
        quantizer = self.codec.quantizer
        residual = F.conv1d(x, self.quantizer_in, quantizer.input_proj.bias)
        mask = _valid(frames, x.shape[2])[:, None]
        codes = []
        for book in quantizer.codebook:
            rows = (residual * mask).transpose(1, 2)
            flat = rows.flatten(0, 1)
            distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ book.t() + book.pow(2).sum(1)[None]
            index = (-distance).max(dim=1).indices.view(rows.shape[:2])
            chosen = F.embedding(index, book)
            straight_through = (rows + (chosen - rows)).transpose(1, 2)
            residual = residual - straight_through * mask
            codes.append(index)
        return torch.stack(codes)

    # ---- codes -> audio ------------------------------------------------------------------------

    def _dequantize(self, codes: Tensor) -> Tensor:
        """(n_q, B, L) -> (B, latent_dim, L)."""
        quantizer = self.codec.quantizer
        total = sum(F.embedding(index, book) for index, book in zip(codes, quantizer.codebook, strict=False))
        assert isinstance(total, Tensor)
        return F.conv1d(total.transpose(1, 2), self.quantizer_out, quantizer.output_proj.bias)

    def _synthesise(self, latents: Tensor, frames: Tensor) -> Tensor:
        """(B, latent_dim, L) -> (B, L * output hop)."""
        decoder = self.codec.acoustic_decoder
        h = self._adapter(self.codec.post_rvq_adapter, latents, frames)
        h = F.conv_transpose1d(h, self.upsample_kernel, stride=self.factor)
        h = self._transform(decoder, h.transpose(1, 2), frames * self.factor).transpose(1, 2)
        length = 2 * h.shape[2]
        h = F.gelu(F.conv_transpose1d(h, decoder.deconv1.weight, decoder.deconv1.bias, stride=2))
        h = F.gelu(F.conv_transpose1d(h, decoder.deconv2.weight, decoder.deconv2.bias))
        return self._vocos(h[..., :length])

    def _vocos(self, features: Tensor) -> Tensor:
        backbone, head = self.codec.vocos.backbone, self.codec.vocos.head
        x = backbone.norm(backbone.embed(features).transpose(1, 2)).transpose(1, 2)
        for block in backbone.convnext:
            assert isinstance(block, ConvNeXtBlock)
            h = block.norm(block.dwconv(x).transpose(1, 2))
            h = block.gamma * block.pwconv2(F.gelu(block.pwconv1(h)))
            x = x + h.transpose(1, 2)
        h = head.out(backbone.final_layer_norm(x.transpose(1, 2))).transpose(1, 2)
        magnitude, phase = h.chunk(2, dim=1)
        magnitude = magnitude.exp().clip(max=1e2)
        return self._inverse_stft(magnitude * (torch.cos(phase) + 1j * torch.sin(phase)))

    def _inverse_stft(self, spectrum: Tensor) -> Tensor:
        """(B, bins, T) complex -> (B, T * hop), overlap-add by folding."""
        window = self.codec.vocos.head.istft.window
        size, frames = window.shape[0], spectrum.shape[2]
        hop = size // 4
        trim, length = (size - hop) // 2, (frames - 1) * hop + size

        def overlap_add(columns: Tensor) -> Tensor:
            folded = F.fold(columns, (1, length), (1, size), stride=(1, hop))
            return folded[:, 0, 0, trim : length - trim]

        signal = overlap_add(torch.fft.irfft(spectrum, size, dim=1) * window[:, None])
        return signal / overlap_add(window.square().expand(1, frames, -1).transpose(1, 2))

    # ---- transformer ---------------------------------------------------------------------------

    def _transform(self, stack: Transformer, x: Tensor, rows: Tensor) -> Tensor:
        """(B, T, D) with `rows` valid rows each -> (B, T, D), zero on padded rows."""
        x = x + stack.positional_embedding[: x.shape[1]]
        valid = _valid(rows, x.shape[1])
        mask = _additive_mask(valid)
        for attention in self.layers[stack]:
            layer = attention.layer
            x = x + self._attend(attention, layer.self_attn_layer_norm(x), mask)
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        return stack.layer_norm(x) * valid[..., None]

    @staticmethod
    def _attend(attention: _Attention, x: Tensor, mask: Tensor) -> Tensor:
        module = attention.layer.self_attn
        b, t, d = x.shape
        size = d // module.heads

        def heads(y: Tensor) -> Tensor:
            return y.view(b, t, module.heads, size).transpose(1, 2).contiguous()

        q = heads(F.linear(x, attention.q, module.q_bias) * size**-0.5)
        k = heads(F.linear(x, attention.k))
        v = heads(F.linear(x, attention.v, module.v_bias))
        weights = F.softmax(q @ k.transpose(2, 3) + mask, dim=-1)
        out: Tensor = module.out_proj((weights @ v).transpose(1, 2).reshape(b, t, d))
        return out


def _valid(lengths: Tensor, longest: int) -> Tensor:
    """(B,) -> (B, longest) bool."""
    return torch.arange(longest)[None] < lengths[:, None]


def _additive_mask(valid: Tensor) -> Tensor:
    """(B, T) bool -> (B, 1, T, T) float32: 1 on valid pairs, lowest float elsewhere.

    See docs/models/xy_tokenizer.md, Transformer.
    """
    pairs = valid[:, None, :, None] & valid[:, None, None, :]
    return torch.where(pairs, 1.0, torch.finfo(torch.float32).min)
