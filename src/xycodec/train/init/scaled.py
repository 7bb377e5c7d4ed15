"""Initial weights of X-Codec's acoustic half that keep the signal's scale (ours; torch's own are the published start).

With torch's own start, biases are ten times as large as speech, and every strided convolution takes away a part of what
is left: the latents of a mini model varied by 0.007 from frame to frame, the semantic ones by 3. After 500 steps they
still did, and all was decoded from the semantic half.

It starts nearly linear, too: a linear map to fewer numbers and back is soon learned, and is a rough waveform already. A
mini autoencoder had a STOI of 0.71 after 100 steps of four seconds so, 0.53 with alpha 1 and branches at 0.3.
"""

from math import sqrt

import torch
from torch import nn

from xycodec.models.xcodec.model import XCodec
from xycodec.nn.dac import ResidualUnit, Snake, UpConv1d

LEVEL = 0.1  # of speech, about
BRANCH = 0.1  # of a residual unit's branch to what goes past it
BEND = 0.1  # of Snake: its alpha, which is 1 elsewhere


@torch.no_grad()
def start_scaled(codec: XCodec) -> None:
    """Draw weights that keep the size of what a convolution reads, without biases; latents are about 1, audio 0.1."""
    for half in (codec.acoustic_encoder, codec.acoustic_decoder):
        branches = {unit.conv2 for unit in half.modules() if isinstance(unit, ResidualUnit)}
        for module in half.modules():
            if isinstance(module, nn.Conv1d | UpConv1d):
                _draw(module, BRANCH if module in branches else 1.0)
            elif isinstance(module, Snake):
                module.alpha.fill_(BEND)
    if codec.config.semantic:
        # Either half on its own way: mixed at random, the semantic one would be noise to the acoustic decoder.
        every = torch.eye(codec.config.latent_dim)
        mine = codec.config.acoustic_dim
        for joint, rows in (
            (codec.fusion, every),
            (codec.acoustic_proj, every[:mine]),
            (codec.semantic_proj, every[mine:]),
        ):
            joint.weight.copy_(rows)
            joint.bias.zero_()
    _draw(codec.acoustic_encoder.stem, 1 / LEVEL)
    _draw(codec.acoustic_decoder.head, LEVEL / 2)


def _draw(conv: nn.Conv1d | nn.ConvTranspose1d, gain: float) -> None:
    taps = conv.kernel_size[0]
    # An output of a transposed convolution sees two of its taps.
    terms = conv.in_channels * (2 if isinstance(conv, UpConv1d) else taps)
    conv.weight = torch.randn_like(conv.weight) * gain / sqrt(terms)
    if conv.bias is not None:
        conv.bias.zero_()
