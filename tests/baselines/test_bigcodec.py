"""BigCodec against its architecture spelled out in the names of its published checkpoint."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xycodec.baselines.open import open_codec
from xycodec.errors import CheckpointError
from xycodec.eval.foreign import is_foreign

STRIDES = (2, 5)
WIDTH, DIM, TOP = 4, 12, 16


def tensors(shapes, seed):
    """Random tensors; a weight is two, of which the direction is not of length 1."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator) / max(1, torch.tensor(shape[1:]).prod().item()) ** 0.5
        if name.endswith(".weight"):
            over = tuple(range(1, value.ndim))
            state[f"{name}_g"] = torch.linalg.vector_norm(value, dim=over, keepdim=True)
            state[f"{name}_v"] = 2 * value
        elif name.endswith("filter"):
            kernel = torch.hann_window(14)[1:-1]
            state[name] = (kernel / kernel.sum())[None, None]
        else:
            state[name] = 0.2 * value
    return state


def snake(stem, channels):
    return {f"{stem}.act.alpha": (channels,), f"{stem}.act.beta": (channels,), f"{stem}.upsample.filter": (1, 1, 12),
            f"{stem}.downsample.lowpass.filter": (1, 1, 12)}  # fmt: skip


def conv(stem, out, into, taps):
    return {f"{stem}.weight": (out, into, taps), f"{stem}.bias": (out,)}


def unit(stem, c):
    return (
        snake(f"{stem}.block.0", c) | conv(f"{stem}.block.1", c, c, 7) | snake(f"{stem}.block.2", c)
        | conv(f"{stem}.block.3", c, c, 1)
    )  # fmt: skip


def lstm(stem, c):
    own = nn.LSTM(c, c, 1)
    return {f"{stem}.lstm.{name}": tuple(p.shape) for name, p in own.named_parameters()}


@pytest.fixture(scope="module")
def state():
    encoder, decoder, c = conv("block.0", WIDTH, 1, 7), conv("model.0", TOP, DIM, 7), WIDTH
    for number, stride in enumerate(STRIDES, 1):
        for place in range(3):
            encoder |= unit(f"block.{number}.block.{place}", c)
        encoder |= snake(f"block.{number}.block.3", c) | conv(f"block.{number}.block.4", 2 * c, c, 2 * stride)
        c *= 2
    encoder |= lstm("block.3", c) | snake("block.4", c) | conv("block.5", DIM, c, 3)
    decoder |= lstm("model.1", TOP)
    c = TOP
    for number, stride in enumerate(STRIDES[::-1], 2):
        decoder |= snake(f"model.{number}.block.0", c)
        decoder |= {
            f"model.{number}.block.1.weight": (c, c // 2, 2 * stride),
            f"model.{number}.block.1.bias": (c // 2,),
        }
        c //= 2
        for place in range(2, 5):
            decoder |= unit(f"model.{number}.block.{place}", c)
    decoder |= snake("model.4", c) | conv("model.5", 1, c, 7)
    decoder |= {"quantizer.layers.0.in_proj.weight": (3, DIM), "quantizer.layers.0.in_proj.bias": (3,),
                "quantizer.layers.0.out_proj.weight": (DIM, 3), "quantizer.layers.0.out_proj.bias": (DIM,)}  # fmt: skip
    generator = tensors(decoder, 1)
    generator["quantizer.layers.0._codebook.weight"] = torch.randn(32, 3, generator=torch.Generator().manual_seed(2))
    made = {"CodecEnc": tensors(encoder, 0), "generator": generator}
    made["CodecEnc"]["block.0.weight_g"] *= 30  # or biases would drown the audio
    return made


@pytest.fixture
def file(state, tmp_path):
    torch.save(state, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


# ---- the computation, tensor by tensor -------------------------------------------------------------


def weight(state, stem):
    g, v = state[f"{stem}.weight_g"], state[f"{stem}.weight_v"]
    return g * v / torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)


def activated(state, stem, x):
    """Zeros between the samples, a low-pass, the snake, a low-pass and every second sample; ends are held."""
    c, kernel = x.shape[1], state[f"{stem}.upsample.filter"].flip(-1).expand(x.shape[1], 1, 12)
    held = F.pad(x, (5, 5), "replicate")
    sparse = torch.stack([held, torch.zeros_like(held)], dim=-1).flatten(2)[..., :-1]
    x = 2 * F.conv1d(F.pad(sparse, (11, 11)), kernel, groups=c)[..., 15:-15]
    alpha, beta = (state[f"{stem}.act.{name}"].exp()[:, None] for name in ("alpha", "beta"))
    x = x + (alpha * x).sin() ** 2 / beta
    kernel = state[f"{stem}.downsample.lowpass.filter"].expand(c, 1, 12)
    return F.conv1d(F.pad(x, (5, 6), "replicate"), kernel, groups=c)[..., ::2]


def units(state, stem, x, first):
    for place, dilation in enumerate((1, 3, 9), first):
        inner = f"{stem}.block.{place}.block"
        y = activated(state, f"{inner}.0", x)
        y = F.conv1d(y, weight(state, f"{inner}.1"), state[f"{inner}.1.bias"], dilation=dilation, padding=3 * dilation)
        y = activated(state, f"{inner}.2", y)
        x = x + F.conv1d(y, weight(state, f"{inner}.3"), state[f"{inner}.3.bias"])
    return x


def recurrent(state, stem, x):
    layer = nn.LSTM(x.shape[1], x.shape[1], 1)
    prefix = f"{stem}.lstm."
    layer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return x + layer(x.permute(2, 0, 1))[0].permute(1, 2, 0)


def encoded(state, x):
    x = F.conv1d(x, weight(state, "block.0"), state["block.0.bias"], padding=3)
    for number, stride in enumerate(STRIDES, 1):
        x = activated(state, f"block.{number}.block.3", units(state, f"block.{number}", x, 0))
        w, b = weight(state, f"block.{number}.block.4"), state[f"block.{number}.block.4.bias"]
        x = F.conv1d(x, w, b, stride, padding=(stride + 1) // 2)
    x = activated(state, "block.4", recurrent(state, "block.3", x))
    return F.conv1d(x, weight(state, "block.5"), state["block.5.bias"], padding=1)


def decoded(state, x):
    x = recurrent(state, "model.1", F.conv1d(x, weight(state, "model.0"), state["model.0.bias"], padding=3))
    for number, stride in enumerate(STRIDES[::-1], 2):
        x = activated(state, f"model.{number}.block.0", x)
        w, b = weight(state, f"model.{number}.block.1"), state[f"model.{number}.block.1.bias"]
        x = F.conv_transpose1d(x, w, b, stride, padding=(stride + 1) // 2, output_padding=stride % 2)
        x = units(state, f"model.{number}", x, 2)
    return F.conv1d(activated(state, "model.4", x), weight(state, "model.5"), state["model.5.bias"], padding=3).tanh()


@torch.no_grad()
@pytest.mark.parametrize("samples", [200, 203])
def test_codes_and_audio_are_those_of_the_checkpoint(state, file, samples):
    codec = open_codec(f"bigcodec:{file}", device="cpu")
    assert (codec.model_id, codec.n_q, codec.codebook_size, codec.hop_length) == ("bigcodec-mine", 1, 32, 10)
    audio = 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    # The published script adds silence to the next frame, and a whole frame where there is no part of one.
    latents = encoded(state["CodecEnc"], F.pad(audio, (0, 10 - samples % 10))[None, None])[0].T
    book, quantizer = state["generator"]["quantizer.layers.0._codebook.weight"], "quantizer.layers.0"
    mapped = F.linear(
        latents, weight(state["generator"], f"{quantizer}.in_proj"), state["generator"][f"{quantizer}.in_proj.bias"]
    )
    codes = F.cosine_similarity(mapped[:, None], book[None], dim=-1).argmax(dim=1)[: -(-samples // 10)]
    out = codec.encode(audio)
    assert torch.equal(out.codes[0, 0], codes)
    assert len(codes.unique()) > 3
    quantized = F.linear(
        book[codes],
        weight(state["generator"], f"{quantizer}.out_proj"),
        state["generator"][f"{quantizer}.out_proj.bias"],
    )
    torch.testing.assert_close(codec.embed(out)[0].T, quantized, atol=1e-5, rtol=1e-4)
    wanted = decoded(state["generator"], quantized.T[None])[0, 0, :samples]
    torch.testing.assert_close(codec.decode(out).audio[0], wanted, atol=2e-5, rtol=1e-3)


def test_a_clip_is_what_it_is_alone(file):
    codec = open_codec(f"bigcodec:{file}", device="cpu")
    clips = [0.3 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (0, 1, 9, 101)]
    out = codec.encode(clips)
    assert [int(n) for n in out.lengths] == [0, 1, 1, 11]
    for number, clip in enumerate(clips):
        assert torch.equal(codec.encode(clip).codes[0], out.codes[number, :, : out.lengths[number]])
    assert [int(n) for n in codec.decode(out).lengths] == [0, 1, 9, 101]


def test_other_files_are_refused_in_a_line(state, tmp_path):
    assert not is_foreign("bigcodec:mine")
    with pytest.raises(CheckpointError, match="no such file"):
        open_codec(f"bigcodec:{tmp_path / 'nothing.pt'}")
    torch.save({"generator": state["generator"]}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="has no tensors under 'CodecEnc'"):
        open_codec(f"bigcodec:{tmp_path / 'half.pt'}")
    some = {"CodecEnc": dict(list(state["CodecEnc"].items())[:-2]), "generator": state["generator"]}
    torch.save(some, tmp_path / "some.pt")
    with pytest.raises(CheckpointError, match="not a whole BigCodec checkpoint") as refusal:
        open_codec(f"bigcodec:{tmp_path / 'some.pt'}")
    assert "\n" not in str(refusal.value)
