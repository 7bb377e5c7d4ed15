"""SpeechTokenizer against its architecture spelled out anew in the names of its published checkpoint."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xycodec.checkpoints.build import empty_codec, random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError, XycodecError
from xycodec.export.programs import export_programs
from xycodec.models.config import CodebooksConfig
from xycodec.models.speech_tokenizer.config import SPEECH_TOKENIZER_CONFIGS, SpeechTokenizerConfig
from xycodec.nn.folding import built_folded

TINY = SpeechTokenizerConfig(
    model_id="tiny", width=2, dim=24, semantic_dim=20, lstm_layers=1, quantizer=CodebooksConfig(n_q=3, codebook_size=32)
)


@pytest.fixture(scope="module")
def codec():
    return random_codec(TINY)


def published(codec):
    """The state dict under the authors' names, weight norm in two tensors of which the direction is not of length 1."""
    state = {}
    for key, value in codec.state_dict().items():
        if match := re.match(r"quantizer\.(\w+)$", key):
            name = {"codebook": "embed"}.get(match[1], match[1])
            for layer, part in enumerate(value):
                part = torch.tensor([float(part)]) if name == "inited" else part
                state[f"quantizer.vq.layers.{layer}._codebook.{name}"] = part
            continue
        name = official(key)
        if name.endswith(".weight") and not name.startswith("transform"):
            stem = name.removesuffix("weight")
            state[f"{stem}weight_g"] = torch.linalg.vector_norm(value, dim=(1, 2), keepdim=True)
            state[f"{stem}weight_v"] = 3 * value
        else:
            state[name] = value
    return state


def official(key):
    side, _, rest = key.partition(".")
    if side == "semantic_proj":
        return f"transform.{rest}"
    strides, leaf = 4, rest.rpartition(".")[2]
    if rest.startswith("stem"):
        return f"{side}.model.0.conv.conv.{leaf}"
    if rest.startswith("head"):
        return f"{side}.model.{3 * strides + 3}.conv.conv.{leaf}"
    if rest.startswith("lstm"):
        return f"{side}.model.{3 * strides + 1 if side == 'encoder' else 1}.lstm.{leaf}"
    _, block, part, *_ = rest.split(".")
    number = 3 * int(block)
    if part == "conv":
        inner = f"{number + 3}.conv.conv" if side == "encoder" else f"{number + 3}.convtr.convtr"
        return f"{side}.model.{inner}.{leaf}"
    inner = {"conv1": "block.1", "conv2": "block.3", "shortcut": "shortcut"}[rest.split(".")[3]]
    return f"{side}.model.{number + (1 if side == 'encoder' else 4)}.{inner}.conv.conv.{leaf}"


# ---- the architecture, from the checkpoint alone -------------------------------------------------


def weight(state, stem):
    g, v = state[f"{stem}.weight_g"], state[f"{stem}.weight_v"]
    return g * v / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True), state[f"{stem}.bias"]


def convolve(state, stem, x, stride=1):
    """Reflected by what the taps lack, and as far again as the last window is short of samples."""
    w, b = weight(state, f"{stem}.conv.conv")
    around = w.shape[2] - stride
    frames = -(-x.shape[2] // stride)
    left = around - around // 2
    right = (frames - 1) * stride + w.shape[2] - x.shape[2] - left
    last = x.shape[2] - 1
    places = [min(abs(i), 10**6) for i in range(-left, x.shape[2] + right)]
    places = [i if i <= last else 2 * last - i for i in places]
    return F.conv1d(x[:, :, places], w, b, stride)


def unit(state, stem, x):
    y = convolve(state, f"{stem}.block.1", F.elu(x))
    return convolve(state, f"{stem}.shortcut", x) + convolve(state, f"{stem}.block.3", F.elu(y))


def lstm(state, stem, x, both):
    layer = nn.LSTM(x.shape[1], x.shape[1], 1, bidirectional=both)
    layer.load_state_dict(
        {key.removeprefix(f"{stem}.lstm."): value for key, value in state.items() if key.startswith(f"{stem}.")}
    )
    steps = x.permute(2, 0, 1)
    return (layer(steps)[0] + torch.cat([steps] * (1 + both), dim=2)).permute(1, 2, 0)


def encoded(state, audio, strides):
    x = convolve(state, "encoder.model.0", audio)
    for number, stride in enumerate(strides):
        x = unit(state, f"encoder.model.{3 * number + 1}", x)
        x = convolve(state, f"encoder.model.{3 * number + 3}", F.elu(x), stride)
    return convolve(state, "encoder.model.15", F.elu(lstm(state, "encoder.model.13", x, True)))


def decoded(state, x, strides):
    x = lstm(state, "decoder.model.1", convolve(state, "decoder.model.0", x), False)
    for number, stride in enumerate(strides):
        w, b = weight(state, f"decoder.model.{3 * number + 3}.convtr.convtr")
        frames = x.shape[2]
        x = F.conv_transpose1d(F.elu(x), w, b, stride)[:, :, stride - stride // 2 :][:, :, : frames * stride]
        x = unit(state, f"decoder.model.{3 * number + 4}", x)
    return convolve(state, "decoder.model.15", F.elu(x))


@torch.no_grad()
@pytest.mark.parametrize("samples", [1600, 4001])
def test_codes_and_audio_are_those_of_the_checkpoint(codec, samples, tmp_path):
    state = published(codec)
    torch.save(state, tmp_path / "SpeechTokenizer.pt")
    loaded = load_codec(tmp_path / "SpeechTokenizer.pt", device="cpu")
    assert loaded.config.model_copy(update={"model_id": "tiny", "quantizer": TINY.quantizer}) == TINY
    audio = 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    latents = encoded(state, audio[None, None], (2, 4, 5, 8))
    torch.testing.assert_close(loaded.encode_latents(audio[None]).transpose(1, 2), latents, atol=1e-5, rtol=1e-4)
    residual, codes, total = latents[0].T, [], torch.zeros_like(latents[0].T)
    for layer in range(3):
        book = state[f"quantizer.vq.layers.{layer}._codebook.embed"]
        codes.append(torch.cdist(residual, book).argmin(dim=1))
        residual, total = residual - book[codes[-1]], total + book[codes[-1]]
    out = loaded.encode(audio)
    assert torch.equal(out.codes[0], torch.stack(codes))
    assert len(out.codes.unique()) > 3
    wanted = decoded(state, total.T[None], (8, 5, 4, 2))[0, 0, :samples]
    torch.testing.assert_close(loaded.decode(out).audio[0], wanted, atol=1e-5, rtol=1e-4)


def test_a_clip_is_what_it_is_alone_and_keeps_its_length(codec):
    clips = [0.3 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (0, 1, 319, 321, 5000)]
    out = codec.encode(clips)
    audio = codec.decode(out)
    for number, clip in enumerate(clips):
        alone = codec.encode(clip)
        frames = int(out.lengths[number])
        assert frames == -(-len(clip) // 320)
        assert torch.equal(alone.codes[0], out.codes[number, :, :frames])
        assert int(audio.lengths[number]) == len(clip)
    first = codec.embed(out.codes[4:], branch="semantic")
    assert torch.equal(first[0].T, codec.quantizer.codebook[0][out.codes[4, 0]])
    with pytest.raises(XycodecError, match="no branch 'words'"):
        codec.embed(out.codes, branch="words")


def test_it_is_saved_and_loaded_and_not_exported(codec, tmp_path):
    again = load_codec(save_codec(codec, tmp_path / "mine"), device="cpu")
    audio = 0.3 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.encode(audio).codes, codec.encode(audio).codes)
    with pytest.raises(CheckpointError, match="cannot be exported"):
        export_programs(codec)


def test_a_checkpoint_in_part_is_refused_in_a_line(codec, tmp_path):
    state = published(codec)
    for key in ("encoder.model.15.conv.conv.bias", "encoder.model.0.conv.conv.weight_g"):
        torch.save({name: value for name, value in state.items() if name != key}, tmp_path / "some.pt")
        with pytest.raises(CheckpointError, match="lacks") as refusal:
            load_codec(tmp_path / "some.pt", device="cpu")
        assert "\n" not in str(refusal.value)


def test_the_published_size():
    config = SPEECH_TOKENIZER_CONFIGS["speech-tokenizer"]
    with built_folded():
        codec = empty_codec(config)
    assert sum(p.numel() for p in codec.parameters()) == 103_664_833  # measured on the published class, folded
    assert (config.bitrate, config.frame_rate) == (4000, 50)
