import pytest
import torch
from torch.nn import functional as F

from published_xcodec import BANDWIDTHS, KINDS, tiny_config, transformers_model
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.errors import CheckpointError, ConfigError, XycodecError
from xycodec.io.config import parse_config
from xycodec.models.longform import decode_long, embed_long, encode_long
from xycodec.models.xcodec.config import XCODEC_CONFIGS
from xycodec.models.xcodec.model import XCodec

RESIDUES = (0, 79, 80, 160, 311, 312, 319)
PUBLISHED_PARAMETERS = {
    "acoustic_encoder": 12_762_944,
    "semantic_model": 94_371_712,
    "semantic_encoder": 14_747_136,
    "fusion": 1_049_600,
    "quantizer": 0,
    "semantic_proj": 787_200,
    "acoustic_proj": 262_400,
    "acoustic_decoder": 20_201_025,
    "semantic_decoder": 16_516_608,
}


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def codec():
    return random_codec(tiny_config())


@pytest.fixture(scope="module")
def baseline():
    return random_codec(tiny_config(semantic=None))


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Transformers' class, and ours from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    model = transformers_model(request.param)
    model.save_pretrained(folder)
    return model, load_codec(folder, device="cpu")


@torch.no_grad()
def theirs(model, clip, bandwidth):
    """Codes (n_q, L) and audio (T,) of Transformers' class for one clip."""
    codes = model.encode(clip[None, None], bandwidth).audio_codes
    return codes[0], model.decode(codes).audio_values[0, 0]


# parity with Transformers' class


@pytest.mark.parametrize("residue", RESIDUES)
def test_reference_mode_equals_transformers(pair, residue):
    model, codec = pair
    codec.reference = True
    clip = noise(320 * 20 + residue, seed=residue)
    for bandwidth, n_q in BANDWIDTHS.items():
        codes, audio = theirs(model, clip, bandwidth)
        made = codec.encode(clip[None], n_q=n_q).codes
        assert torch.equal(made[0], codes)
        decoded = codec.decode(made).audio[0]
        assert len(decoded) == 320 * ((len(clip) + 240) // 320)
        torch.testing.assert_close(decoded, audio, atol=1e-4, rtol=0)
    assert codes.unique().numel() > 30  # codes that say something
    assert 0.01 < audio.std() < 1


@pytest.mark.parametrize("residue", RESIDUES)
def test_the_default_equals_transformers_on_padded_audio(pair, residue):
    model, codec = pair
    codec.reference = False
    clip = noise(320 * 20 + residue, seed=residue)
    codes, audio = theirs(model, F.pad(clip, (0, -len(clip) % 320)), max(BANDWIDTHS))
    made = codec.encode(clip[None]).codes
    assert torch.equal(made[0], codes)
    assert made.shape[2] == 20 + (residue > 0)
    torch.testing.assert_close(codec.decode(made).audio[0], audio, atol=1e-4, rtol=0)


def test_the_shifted_path_is_taken_where_published_and_matters(pair):
    _, codec = pair
    clip = noise(320 * 20 + 160)
    codec.reference = True
    shifted = codec.encode(clip[None]).codes
    codec.reference = False
    assert shifted.shape == codec.encode(clip[None]).codes.shape
    assert not torch.equal(shifted, codec.encode(clip[None]).codes)


@pytest.mark.parametrize("samples", [0, 1, 79, 80, 311, 312])
def test_the_shortest_clips_under_the_published_rule(pair, samples):
    model, codec = pair
    codec.reference = True
    clip = noise(samples)
    made = codec.encode(clip[None]).codes
    assert made.shape[2] == codec.reference_frames(samples) == (samples + 240) // 320
    if samples >= 80:
        assert torch.equal(made[0], theirs(model, clip, max(BANDWIDTHS))[0])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_full_width_equals_transformers(kind, tmp_path):
    wide = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "intermediate_size": 3072,
            "conv_dim": (512,) * 7, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}  # fmt: skip
    model = transformers_model(
        kind, encoder=64, decoder=1024, acoustic=256, codebook_size=1024, bandwidths=(0.5, 1, 1.5, 2, 4), **wide
    )
    model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path, device="cpu", reference=True)
    clip = noise(320 * 15 + 100)
    codes, audio = theirs(model, clip, 4)
    made = codec.encode(clip[None]).codes
    assert made.shape == (1, 8, 16)
    assert torch.equal(made[0], codes)
    assert codes.unique().numel() > 60
    torch.testing.assert_close(codec.decode(made).audio[0], audio, atol=1e-4, rtol=0)


# lengths and batches


def test_decoding_gives_whole_frames_and_the_long_way_the_clip(codec):
    for samples in (0, 1, 319, 320, 321, 5000):
        clip = noise(samples)
        out = codec.encode(clip[None])
        frames = -(-samples // 320)
        assert out.codes.shape == (1, 8, frames)
        assert codec.decode(out.codes).audio.shape == (1, 320 * frames)
        codes = encode_long(codec, clip)
        assert torch.equal(codes, out.codes[0])
        assert len(decode_long(codec, codes, num_samples=samples)) == samples


@pytest.mark.exact
@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_equals_single_clips_and_ignores_what_lies_past_them(codec, threads, count):
    threads(count)
    lengths = [4000, 1, 2560, 0]
    audio = noise(4, 4000)
    batch = codec.encode(audio, torch.tensor(lengths))
    decoded = codec.decode(batch.codes, batch.lengths)
    embedded = codec.embed(batch.codes, batch.lengths, branch="semantic")
    for i, samples in enumerate(lengths):
        alone = codec.encode(audio[i : i + 1, :samples])
        frames = alone.codes.shape[2]
        assert batch.lengths[i] == frames
        assert torch.equal(batch.codes[i, :, :frames], alone.codes[0])
        assert torch.equal(decoded.audio[i, : 320 * frames], codec.decode(alone.codes).audio[0])
        assert torch.equal(embedded[i, :, :frames], codec.embed(alone.codes, branch="semantic")[0])
        assert not decoded.audio[i, 320 * frames :].any()
        assert not embedded[i, :, frames:].any()


def test_fewer_layers_are_the_first_ones(codec):
    clip = noise(1, 3200)
    every = codec.encode(clip).codes
    for n_q in (1, 2, 3, 4, 8):
        assert torch.equal(codec.encode(clip, n_q=n_q).codes, every[:, :n_q])


def test_windows_cover_a_long_clip():
    codec = random_codec(tiny_config(window_frames=30))
    clip = noise(320 * 100 + 7)
    codes = encode_long(codec, clip)
    assert codes.shape == (8, 101)
    assert torch.equal(encode_long(codec, iter(clip.numpy()[i : i + 777] for i in range(0, len(clip), 777))), codes)
    first = codec.encode(clip[None, : 30 * 320]).codes[0]
    assert torch.equal(codes[:, :25], first[:, :25])
    assert len(decode_long(codec, codes, num_samples=len(clip))) == len(clip)
    assert torch.equal(codec.encode(clip[None]).codes[0], codes)


@pytest.mark.parametrize("samples", [6500, 6500 + 79, 6560 + 80, 30 * 320])
def test_long_clips_in_reference_mode_have_the_published_number_of_frames(samples):
    codec = random_codec(tiny_config(window_frames=30))
    codec.reference = True
    codes = encode_long(codec, noise(samples))
    assert codes.shape[1] == (samples + 240) // 320


# the pieces


def test_latents_put_the_acoustic_half_first(codec):
    audio = noise(2, 3200)
    acoustic = codec.acoustic_encoder(audio[:, None])
    semantic = codec.semantic_encoder(codec.semantic_features(audio).transpose(1, 2))
    fusion = codec.fusion
    expected = torch.cat([acoustic, semantic], dim=1).transpose(1, 2) @ fusion.weight.T + fusion.bias
    torch.testing.assert_close(codec.encode_latents(audio), expected)


def test_given_features_are_used(codec):
    audio = noise(2, 3200)
    features = codec.semantic_features(audio)
    assert features.shape == (2, 10, 20)
    assert torch.equal(codec.encode_latents(audio, features), codec.encode_latents(audio))
    assert not torch.allclose(codec.encode_latents(audio, features + 1), codec.encode_latents(audio))


def test_a_gradient_reaches_everything_but_the_semantic_model():
    codec = XCodec(tiny_config()).train()
    audio = noise(2, 3200)
    latents = codec.encode_latents(audio)
    out = codec.quantizer(latents)
    loss = codec.decode_latents(out.quantized).square().mean() + codec.decode_semantic(out.quantized).square().mean()
    loss.backward()
    lacking = {name.split(".")[0] for name, p in codec.named_parameters() if p.grad is None}
    assert lacking == {"semantic_model"}
    assert not codec.semantic_model.model.training
    assert codec.acoustic_encoder.training


def test_folding_changes_nothing():
    codec = XCodec(tiny_config()).eval()
    codec.quantizer.codebook.normal_()
    audio = noise(1, 3200)
    codes = codec.encode(audio).codes
    decoded = codec.decode(codes).audio
    codec.fold_weight_norm()
    assert not [key for key in codec.state_dict() if "parametrizations" in key]
    assert torch.equal(codec.encode(audio).codes, codes)
    assert torch.equal(codec.decode(codes).audio, decoded)


# embeddings


def test_the_semantic_branch_is_the_semantic_decoders_output(pair):
    model, codec = pair
    codec.reference = False
    codes = codec.encode(noise(1, 3200)).codes
    with torch.no_grad():
        quantized = model.quantizer.decode(codes.transpose(0, 1))
        expected = model.decoder_semantic(model.fc1(quantized.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(codec.embed(codes, branch="semantic"), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codec.embed(codes), quantized)
    assert torch.equal(embed_long(codec, codes[0], branch="semantic"), codec.embed(codes, branch="semantic")[0])


def test_an_empty_batch_and_an_empty_clip_have_empty_features(codec):
    assert codec.embed(torch.zeros(0, 8, 5, dtype=torch.int64), branch="semantic").shape == (0, 20, 5)
    assert codec.embed(torch.zeros(1, 8, 0, dtype=torch.int64), branch="semantic").shape == (1, 20, 0)


@pytest.mark.parametrize("name", ["codec", "baseline", "xy"])
def test_an_unknown_branch_is_refused_in_a_line(request, name):
    codec = load_codec("xy-random", device="cpu") if name == "xy" else request.getfixturevalue(name)
    branch = "acoustic" if name == "codec" else "semantic"
    with pytest.raises(XycodecError, match=f"^{codec.model_id} has no branch '{branch}': ") as error:
        codec.embed(torch.zeros(1, 1, 3, dtype=torch.int64), branch=branch)
    assert "\n" not in str(error.value)


# the baseline and the sizes


def test_the_baseline_quantizes_the_acoustic_latents_alone(baseline):
    audio = noise(1, 3200)
    latents = baseline.acoustic_encoder(audio[:, None]).transpose(1, 2)
    assert torch.equal(baseline.encode_latents(audio), latents)
    codes = baseline.encode(audio).codes
    assert codes.unique().numel() > 10
    assert torch.equal(codes, baseline.quantizer.encode(latents, 8))
    assert {name for name, _ in baseline.named_children()} == {"acoustic_encoder", "quantizer", "acoustic_decoder"}
    quantized = sum(baseline.quantizer.codebook[i, codes[0, i]] for i in range(8))
    decoded = baseline.acoustic_decoder(quantized.T[None])
    torch.testing.assert_close(baseline.decode(codes).audio, decoded[0])
    assert baseline.embed(codes).shape == (1, 12, 10)
    baseline.reference = True
    assert baseline.encode(audio[:, :631]).codes.shape[2] == (631 + 8) // 320
    baseline.reference = False


@pytest.mark.parametrize("name", XCODEC_CONFIGS)
def test_full_size_has_the_published_numbers(name):
    with torch.device("meta"):
        codec = XCodec(XCODEC_CONFIGS[name])
    codec.fold_weight_norm()
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in codec.named_children()}
    # The published count of a semantic model has the 128 lengths of its position convolution's weight norm.
    counts["semantic_model"] += 128
    wavlm = {"semantic_model": 94_381_936} if "wavlm" in name else {}
    assert counts == PUBLISHED_PARAMETERS | wavlm
    assert sum(buffer.numel() for buffer in codec.quantizer.buffers()) == 16_785_416
    assert (codec.input_sample_rate, codec.output_sample_rate, codec.hop_length) == (16_000, 16_000, 320)
    assert (codec.frame_rate, codec.n_q, codec.codebook_size) == (50, 8, 1024)
    assert codec.bitrate == codec.config.bitrate == 4000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"strides": [8, 5, 4]}, "320"),
        ({"strides": []}, "strides"),
        ({"decoder_width": 40}, "decoder_width"),
        ({"semantic": {"d_model": 30}}, "semantic"),
        ({"semantic": {"kind": "whisper"}}, "semantic.kind"),
        ({"semantics": None}, "did you mean 'semantic'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change, named):
    with pytest.raises(ConfigError) as error:
        parse_config(type(tiny_config()), tiny_config().model_dump() | change, "config.json")
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_other_types_than_float32_are_refused(codec):
    with pytest.raises(CheckpointError, match="float32 only"):
        codec.to_compute_dtype(torch.bfloat16)
