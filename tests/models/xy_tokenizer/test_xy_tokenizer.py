import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import reference
from xycodec.checkpoints.build import random_codec
from xycodec.errors import AudioError, XycodecError
from xycodec.models.xy_tokenizer.config import CONFIGS, QuantizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer

HOP = 1280
WINDOW = 50 * HOP  # of most models here: 4 s are faster than 30
FULL_WINDOW = 480_000


def make(seed=0, **changes):
    """A tiny codec in which every bias and norm matters, and whose codes differ from frame to frame."""
    codec = random_codec(reference.tiny_config(**{"window_frames": 50, **changes}), seed)
    for part in codec.children():
        if part is not codec.mel:
            reference.randomise(part, seed, scale=0.7)
    reference.spread_codebooks(codec, torch.stack(clips_of(*[30_000] * 10, seed=99)))
    return codec.requires_grad_(False)


@pytest.fixture(scope="module")
def shared():
    return make()


@pytest.fixture(params=["length-true", "reference"])
def codec(request, shared):
    """The tiny codec in both modes, and as it was after the test."""
    shared.reference = request.param == "reference"
    yield shared
    shared.reference = shared.share_batches = False


@pytest.fixture
def exact(shared):
    """The tiny codec in length-true mode, and as it was after the test."""
    yield shared
    shared.reference = shared.share_batches = False


@pytest.fixture(scope="module")
def published():
    """A tiny codec whose window is the published one."""
    return make(window_frames=375)


def clips_of(*lengths, seed=0):
    """Tones in noise, both of changing loudness, so that no two frames are alike."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for n in lengths:
        pitch, tone, noise = torch.rand(3, n // 700 + 1, generator=generator)[:, torch.arange(n) // 700]
        wave = torch.sin(2 * math.pi * torch.arange(n) * (0.005 + 0.4 * pitch))
        clips.append(0.3 * 1e-3**tone * wave + 0.2 * 1e-3**noise * torch.randn(n, generator=generator))
    return clips


def batch_of(clips, garbage=0.0):
    audio = torch.full((len(clips), max(map(len, clips))), garbage)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    return audio, torch.tensor([len(clip) for clip in clips])


def some_codes(*frames, n_q=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.zeros(len(frames), n_q, max(frames), dtype=torch.int64)
    for row, count in zip(codes, frames, strict=True):
        row[:, :count] = torch.randint(0, 64, (n_q, count), generator=generator)
    return codes, torch.tensor(frames)


# sizes


def on_meta(name):
    with torch.device("meta"):
        return XYTokenizer(CONFIGS[name])


def test_parameters_per_part_are_the_published_ones():
    codec = on_meta("xy-tokenizer")
    parts = {name: reference.count_parameters(part) for name, part in codec.named_children()}
    assert parts == {"mel": 0, **reference.PUBLISHED_PARAMETERS}
    assert reference.count_parameters(codec) == 519_621_074
    names = {name for name, _ in codec.named_parameters()}
    assert sum(v.numel() for name, v in codec.state_dict().items() if name not in names) == 14_445_448


@pytest.mark.parametrize(
    ("name", "hop", "rows"),
    [("xy-tokenizer", 160, 642), ("xy-tokenizer-24k", 240, 962), ("xy-tokenizer-32k", 320, 1282)],
)
def test_head_sizes(name, hop, rows):
    codec = on_meta(name)
    head = codec.vocos.head
    assert head.out.weight.shape == (rows, 512)
    assert head.istft.window.shape == (4 * hop,)
    assert codec.config.output_hop_length == 8 * hop
    assert codec.output_sample_rate == 100 * hop


def test_numbers_of_the_published_model():
    codec = on_meta("xy-tokenizer")
    assert (codec.n_q, codec.codebook_size, codec.hop_length, codec.window_samples) == (8, 1024, HOP, FULL_WINDOW)
    assert (codec.frame_rate, codec.bitrate) == (12.5, 1000)
    assert (codec.input_sample_rate, codec.output_sample_rate) == (16_000, 16_000)


def test_random_codec_is_the_same_for_the_same_seed():
    state, again, other = (random_codec(reference.tiny_config(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert not torch.equal(state["quantizer.codebook"], other["quantizer.codebook"])


def test_codes_of_these_models_differ_from_frame_to_frame(exact):
    codes = exact.encode(*batch_of(clips_of(*[30_000] * 4))).codes
    assert min(len(codes[:, layer].unique()) for layer in range(4)) > 20


# a clip's codes depend on the clip alone


LENGTHS = (5000, 1, 20_479, 0, 20_480, 1279, 1280, 9001, 641, 5000)


@pytest.mark.exact
@pytest.mark.parametrize("count", [1, 2, 3])
def test_batch_equals_single(codec, threads, count):
    threads(count)
    clips = clips_of(*LENGTHS)
    out = codec.encode(*batch_of(clips, garbage=0.9))
    assert out.codes.dtype == out.lengths.dtype == torch.int64
    threads(1)
    for codes, frames, clip in zip(out.codes, out.lengths, clips, strict=True):
        alone = codec.encode(clip[None])
        assert int(frames) == int(alone.lengths)
        assert torch.equal(codes[:, :frames], alone.codes[0])
        assert (codes[:, frames:] == 0).all()


@pytest.mark.exact
def test_order_does_not_matter(codec):
    clips = clips_of(*LENGTHS)
    audio, lengths = batch_of(clips)
    order = torch.randperm(len(clips))
    out, other = codec.encode(audio, lengths), codec.encode(audio[order], lengths[order])
    assert torch.equal(out.codes[order], other.codes)
    assert torch.equal(out.lengths[order], other.lengths)


@pytest.mark.exact
def test_what_lies_past_the_end_does_not_matter(codec):
    clips = clips_of(5000, 3000)
    codes = codec.encode(*batch_of(clips)).codes
    assert torch.equal(codec.encode(*batch_of(clips, garbage=math.nan)).codes, codes)
    longer = torch.full((2, 30_000), 7.0)
    longer[:, :5000] = batch_of(clips, garbage=7.0)[0]
    assert torch.equal(codec.encode(longer, torch.tensor([5000, 3000])).codes, codes)


@pytest.mark.exact
@pytest.mark.parametrize("count", [1, 2, 3])
def test_decoded_batch_equals_single(exact, threads, count):
    threads(count)
    codes, lengths = some_codes(9, 1, 0, 17, 9, 4)
    out = exact.decode(codes, lengths)
    assert out.audio.dtype == torch.float32
    assert out.audio.shape == (6, 17 * HOP)
    assert out.lengths.tolist() == [n * HOP for n in lengths.tolist()]
    threads(1)
    for audio, item, frames in zip(out.audio, codes, lengths.tolist(), strict=True):
        alone = exact.decode(item[None, :, :frames])
        assert torch.equal(audio[: frames * HOP], alone.audio[0])
        assert (audio[frames * HOP :] == 0).all()
        assert frames == 0 or alone.audio.abs().max() > 1e-3


@pytest.mark.exact
def test_thread_count_does_not_matter(exact, threads):
    audio, lengths = batch_of(clips_of(30_000, 5000, 12_345))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(exact.encode(audio, lengths).codes)
        results.append(torch.cat([exact.encode(audio[:1]).codes, results[0][1:]]))
        assert torch.get_num_threads() == count
    assert all(torch.equal(result, results[0]) for result in results)


def test_threads_that_start_later_keep_their_number_of_threads(exact, threads):
    def later():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    threads(2)
    assert later() == 2
    exact.encode(*batch_of(clips_of(9000, 5000, 4000)))
    assert torch.get_num_threads() == 2
    assert later() == 2


@pytest.mark.exact
def test_autocast_around_a_call_does_not_tell_a_batch_from_its_clips(exact, threads):
    threads(2)
    audio, lengths = batch_of(clips_of(*[40_000] * 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = exact.encode(audio, lengths).codes
        alone = torch.cat([exact.encode(clip[None]).codes for clip in audio])
        assert torch.equal(together, alone)
        # The inverse transforms are MKL's, whose bits may change with the batch; bfloat16 would differ by 1e-3.
        pair = exact.decode(together).audio[0], exact.decode(together[:1]).audio[0]
        torch.testing.assert_close(*pair, atol=1e-5, rtol=0)


def test_inference_mode_and_gradients_do_not_matter(exact, threads):
    threads(2)
    audio, lengths = batch_of(clips_of(9000, 5000, 4000))
    codes = exact.encode(audio, lengths).codes
    with torch.inference_mode():
        assert torch.equal(exact.encode(audio, lengths).codes, codes)
    trained = copy.deepcopy(exact).requires_grad_(True).train()
    assert torch.equal(trained.encode(audio.requires_grad_(), lengths).codes, codes)
    assert not trained.decode(codes).audio.requires_grad
    assert not trained.embed(codes).requires_grad


# the short margin is exact


def latents_of(codec, clip):
    with torch.no_grad():
        return codec.encode_latents(clip[None], [len(clip)])[0]


def assert_equals_the_full_window(codec, clip):
    rows = math.ceil(len(clip) / 160) // 2 if codec.reference else 4 * math.ceil(len(clip) / HOP)
    frames = rows // 4
    out = codec.encode(clip[None])
    assert out.codes.shape == (1, 4, frames)
    assert out.lengths.tolist() == [frames]
    if frames:
        expected = reference.latents_of_full_window(codec, clip, rows)
        torch.testing.assert_close(latents_of(codec, clip), expected, atol=1e-5, rtol=0)
        assert torch.equal(out.codes, codec.quantizer.encode(expected, 4))
    return out


@pytest.mark.parametrize("length", [1, 159, 640, 1121, 1279, 1280, 1281, 2401, 16_000, 40_160])
def test_trimmed_equals_the_full_window(codec, length):
    assert_equals_the_full_window(codec, clips_of(length)[0])


@pytest.mark.parametrize("length", [WINDOW - HOP - 1, WINDOW - HOP, WINDOW - HOP + 1, WINDOW - 1, WINDOW])
def test_nearly_full_windows(codec, length):
    assert_equals_the_full_window(codec, clips_of(length)[0])


@pytest.mark.parametrize("mode", ["length-true", "reference"])
@pytest.mark.parametrize("length", [1, 2401, FULL_WINDOW - 1, FULL_WINDOW])
def test_published_window(published, length, mode):
    published.reference = mode == "reference"
    out = assert_equals_the_full_window(published, clips_of(length)[0])
    if length >= FULL_WINDOW - 1:
        assert out.codes.shape == (1, 4, 375)


@pytest.mark.parametrize("length", [3 * HOP, 3 * HOP - 1, 3 * HOP + 1, 3 * HOP + 160, 3 * HOP + 320])
@pytest.mark.parametrize("click", [1, 41, 200])
def test_click_in_the_last_samples(codec, length, click):
    clip = torch.zeros(length)
    clip[:-300] = 1e-3 * torch.randn(length - 300)
    clip[-click] = 1.0
    assert_equals_the_full_window(codec, clip)


@pytest.mark.parametrize("length", [1, 2000, HOP * 4])
def test_silence(codec, length):
    assert_equals_the_full_window(codec, torch.zeros(length))


def test_loud_end_lowers_nothing_but_the_floor(exact):
    clip = clips_of(10_000)[0]
    clip[:5000] *= 1e-6
    assert_equals_the_full_window(exact, clip)


# lengths


@pytest.mark.parametrize("length", [0, 1, 1279, 1280, 1281, 2401, 12_800, 12_801])
def test_round_trip_covers_the_clip(exact, length):
    out = exact.encode(clips_of(length)[0][None])
    assert out.lengths.tolist() == [math.ceil(length / HOP)]
    audio = exact.decode(out.codes, out.lengths)
    assert audio.audio.shape == (1, math.ceil(length / HOP) * HOP)
    assert audio.lengths.tolist() == [audio.audio.shape[1]]


@pytest.mark.parametrize("length", [0, 100, 1120, 1121, 1279, 1280, 2401, 12_800, 13_999])
def test_reference_lengths(shared, length):
    shared.reference = True
    try:
        out = shared.encode(clips_of(length)[0][None])
    finally:
        shared.reference = False
    frames = math.ceil(length / 160) // 8
    assert out.lengths.tolist() == [frames]
    assert out.codes.shape == (1, 4, frames)


@pytest.mark.parametrize(("rate", "hop"), [(16_000, 1280), (24_000, 1920), (32_000, 2560)])
def test_output_rates(rate, hop):
    codec, published = make(output_sample_rate=rate), make()
    codes, lengths = some_codes(6, 2)
    out = codec.decode(codes, lengths)
    assert out.audio.shape == (2, 6 * hop)
    assert out.lengths.tolist() == [6 * hop, 2 * hop]
    assert torch.equal(out.audio[1, : 2 * hop], codec.decode(codes[1:, :, :2]).audio[0])
    assert codec.num_output_samples(1001) == math.ceil(1001 * rate / 16_000)
    assert codec.num_frames(1281) == 2
    clip = clips_of(5000)[0][None]
    assert torch.equal(codec.encode(clip).codes, published.encode(clip).codes)


def test_batch_of_empty_items(codec):
    out = codec.encode(torch.zeros(2, 500), torch.zeros(2, dtype=torch.int64))
    assert out.codes.shape == (2, 4, 0)
    assert out.lengths.tolist() == [0, 0]
    assert codec.encode(torch.zeros(2, 0)).codes.shape == (2, 4, 0)
    audio = codec.decode(out.codes, out.lengths)
    assert audio.audio.shape == (2, 0)
    assert audio.lengths.tolist() == [0, 0]
    assert codec.embed(out.codes, out.lengths).shape == (2, 128, 0)


def test_batch_of_no_items(codec):
    out = codec.encode(torch.zeros(0, 500))
    assert out.codes.shape == (0, 4, 0)
    assert out.codes.dtype == out.lengths.dtype == torch.int64
    audio = codec.decode(out.codes, out.lengths)
    assert audio.audio.shape == (0, 0)
    assert audio.lengths.dtype == torch.int64


# layers and embeddings


@pytest.mark.parametrize("n_q", [1, 3])
def test_fewer_layers_are_a_prefix(codec, n_q):
    audio, lengths = batch_of(clips_of(9000, 4000))
    out, full = codec.encode(audio, lengths, n_q=n_q), codec.encode(audio, lengths)
    assert out.codes.shape[1] == n_q
    assert torch.equal(out.codes, full.codes[:, :n_q])
    assert codec.decode(out.codes, out.lengths).audio.shape == (2, full.codes.shape[2] * HOP)


def test_fewer_layers_decode_to_something_else(exact):
    codes, _ = some_codes(5)
    assert not torch.equal(exact.decode(codes[:, :2]).audio, exact.decode(codes).audio)


@pytest.mark.parametrize("n_q", [2, 4])
def test_embed_is_what_the_quantizer_passes_on(exact, n_q):
    codes, lengths = some_codes(7, 3, 0, n_q=n_q)
    vectors = exact.embed(codes, lengths)
    assert vectors.shape == (3, exact.config.latent_dim, 7)
    expected = exact.quantizer.decode(codes).transpose(1, 2)
    for got, wanted, count in zip(vectors, expected, lengths, strict=True):
        assert torch.equal(got[:, :count], wanted[:, :count])
        assert (got[:, count:] == 0).all()
    assert torch.equal(exact.embed(codes), expected)


def test_decode_goes_through_the_embeddings(exact):
    codes, _ = some_codes(7)
    with torch.no_grad():
        audio = exact.decode_latents(exact.embed(codes).transpose(1, 2))
    assert torch.equal(exact.decode(codes).audio, audio)


# shared batches, as on a GPU


def test_shared_latents_agree(codec):
    clips = clips_of(*[n for n in LENGTHS if n > 1300])
    audio, lengths = batch_of(clips, garbage=0.9)
    with torch.no_grad():
        together, mask, _ = codec.encode_latents(audio, lengths.tolist())
    for latents, valid, clip in zip(together, mask, clips, strict=True):
        alone = latents_of(codec, clip)[0]
        assert int(valid.sum()) == len(alone)
        assert valid[: len(alone)].all()
        torch.testing.assert_close(latents[: len(alone)], alone, atol=1e-5, rtol=0)


def test_mask_is_none_where_nothing_is_padded(exact):
    with torch.no_grad():
        assert exact.encode_latents(torch.zeros(2, 3000), [3000, 2561])[1] is None
        assert exact.encode_latents(torch.zeros(2, 3000), [3000, 2560])[1] is not None


@pytest.mark.exact
def test_shared_codes_agree(codec):
    audio, lengths = batch_of(clips_of(*LENGTHS), garbage=0.9)
    expected = codec.encode(audio, lengths)
    codec.share_batches = True
    out = codec.encode(audio, lengths)
    assert torch.equal(out.lengths, expected.lengths)
    assert torch.equal(out.codes, expected.codes)
    assert codec.encode(torch.zeros(0, 10)).codes.shape == (0, 4, 0)
    assert codec.encode(torch.zeros(2, 0)).codes.shape == (2, 4, 0)


def test_shared_decoding_agrees(exact):
    codes, lengths = some_codes(9, 1, 0, 17, 9, 4)
    expected = exact.decode(codes, lengths)
    exact.share_batches = True
    out = exact.decode(codes, lengths)
    assert torch.equal(out.lengths, expected.lengths)
    torch.testing.assert_close(out.audio, expected.audio, atol=1e-5 * float(expected.audio.abs().max()), rtol=1e-5)


def test_masked_latents_decode_to_nothing_past_the_end(exact):
    codes, lengths = some_codes(9, 4)
    mask = torch.arange(9) < lengths[:, None]
    with torch.no_grad():
        audio = exact.decode_latents(exact.quantizer.decode(codes), mask)
    assert audio.shape == (2, 9 * HOP)
    assert (audio[1, 4 * HOP :] == 0).all()


# other shapes of the model


def test_one_tower_does_without_the_semantic_one():
    codec = make(semantic_encoder=None, semantic_encoder_adapter=None)
    assert codec.semantic_encoder is None
    assert not [key for key in codec.state_dict() if key.startswith("semantic")]
    clip = clips_of(5000)[0]
    out = assert_equals_the_full_window(codec, clip)
    assert codec.decode(out.codes).audio.shape == (1, 4 * HOP)


@pytest.mark.parametrize("part", ["semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder"])
def test_semantic_rows_come_first(part):
    clip, codec = clips_of(5000)[0], make()
    before = latents_of(codec, clip)
    changed = copy.deepcopy(codec)
    reference.randomise(getattr(changed, part), seed=9)
    assert (latents_of(changed, clip) - before).abs().max() > 1e-2
    # A tower whose half of the map is zero has no say.
    half = slice(32) if part.startswith("semantic") else slice(32, None)
    for model in (codec, changed):
        model.pre_rvq_adapter.proj.weight[:, half] = 0
    assert torch.equal(latents_of(changed, clip), latents_of(codec, clip))


def test_bfloat16_towers():
    codec = make()
    half = copy.deepcopy(codec)
    half.to_compute_dtype(torch.bfloat16)
    types = {name: value.dtype for name, value in half.named_parameters()}
    assert types["acoustic_encoder.layers.0.fc1.weight"] == torch.bfloat16
    assert types["post_rvq_adapter.layers.1.self_attn.qkv_weight"] == torch.bfloat16
    assert types["vocos.backbone.convnext.0.pwconv2.weight"] == torch.bfloat16
    for name in ("quantizer", "downsample", "upsample", "vocos.head", "vocos.backbone.embed"):
        assert {types[key] for key in types if key.startswith(name)} == {torch.float32}
    assert all(types[key] == torch.float32 for key in types if "norm" in key or "conv1" in key.split(".")[1])
    assert half.quantizer.codebook.dtype == torch.float32
    audio, lengths = batch_of(clips_of(48_000, 30_000))
    exact, rough = codec.encode(audio, lengths), half.encode(audio, lengths)
    same = (exact.codes == rough.codes).float().mean(dim=(0, 2))
    assert same[0] > 0.9
    out = half.decode(exact.codes, exact.lengths).audio
    assert out.dtype == torch.float32
    wanted = codec.decode(exact.codes, exact.lengths).audio
    assert 0 < (out - wanted).norm() / wanted.norm() < 0.2
    for codes, clip, frames, length in zip(rough.codes, audio, rough.lengths, lengths, strict=True):
        alone = half.encode(clip[None, : int(length)])
        assert torch.equal(codes[:, :frames], alone.codes[0])


def test_quantizer_settings_reach_it():
    settings = QuantizerConfig(
        n_q=3, codebook_size=32, codebook_dim=8, decay=0.5, dead_code_threshold=1.5, kmeans_iterations=4,
        dropout=0.25, commitment="l1", commit_every_layer=False,
    )  # fmt: skip
    quantizer = XYTokenizer(reference.tiny_config(quantizer=settings)).quantizer
    assert quantizer.codebook.shape == (3, 32, 8)
    for name in ("n_q", "decay", "dead_code_threshold", "kmeans_iterations", "dropout", "commitment"):
        assert getattr(quantizer, name) == getattr(settings, name)
    assert quantizer.commit_every_layer is False


def test_gradients_reach_every_part():
    codec = XYTokenizer(reference.tiny_config()).train()
    audio, lengths = batch_of(clips_of(9000, 4000))
    latents, mask, _ = codec.encode_latents(audio, lengths.tolist())
    out = codec.quantizer(latents, mask)
    audio = codec.decode_latents(out.quantized, mask)
    (audio[0].square().mean() + audio[1, : 4 * HOP].square().mean() + out.commitment_loss.value()).backward()
    silent = {name for name, value in codec.named_parameters() if value.grad is None or not value.grad.any()}
    assert silent == set()
    assert all(torch.isfinite(value.grad).all() for value in codec.parameters())


# what is refused


def one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


ok = torch.zeros(2, 3000)


@pytest.mark.parametrize(
    ("audio", "lengths", "words"),
    [
        (torch.zeros(()), None, ["(B, T)", "()"]),
        (torch.zeros(2, 2, 3000), None, ["(B, T)", "(2, 2, 3000)"]),
        (torch.zeros(2, 3000, dtype=torch.int32), None, ["floats", "int32"]),
        (torch.full((1, 3000), math.nan), None, ["item 0", "NaN"]),
        (torch.tensor([[0.0, 1.0], [0.0, math.inf]]), None, ["item 1", "Inf"]),
    ],
)
def test_encode_refuses_wrong_audio(exact, audio, lengths, words):
    with pytest.raises(AudioError) as error:
        exact.encode(audio, lengths)
    one_line(error, *words)


def test_encode_takes_long_padding_and_what_fits(exact):
    audio = torch.zeros(1, WINDOW + 5000)
    assert exact.encode(torch.zeros(1, WINDOW)).codes.shape == (1, 4, 50)
    assert exact.encode(audio, torch.tensor([1000])).codes.shape == (1, 4, 1)
    assert exact.encode(torch.zeros(1, 1000, dtype=torch.float64)).codes.shape == (1, 4, 1)


@pytest.mark.parametrize(
    "lengths",
    [
        torch.tensor([100]),
        torch.tensor([100, 100, 100]),
        torch.tensor([100, 3001]),
        torch.tensor([-1, 100]),
        torch.tensor([100.0, 100.0]),
        torch.tensor([math.nan, 100.0]),
        torch.tensor(100),
        torch.tensor([[100], [100]]),
    ],
    ids=["too few", "too many", "too long", "negative", "float", "nan", "0-d", "2-d"],
)
def test_wrong_lengths_are_refused(exact, lengths):
    with pytest.raises(XycodecError, match="lengths must be 2 integers, each from 0 to its item") as error:
        exact.encode(ok, lengths)
    one_line(error)
    with pytest.raises(XycodecError, match="lengths must be 2 integers, each from 0 to its item") as error:
        exact.decode(torch.zeros(2, 4, 50, dtype=torch.int64), lengths)
    one_line(error)


@pytest.mark.parametrize("n_q", [0, -1, 5])
def test_encode_refuses_a_wrong_number_of_layers(exact, n_q):
    with pytest.raises(XycodecError, match=f"n_q must be an integer from 1 to 4, got {n_q}") as error:
        exact.encode(ok, n_q=n_q)
    one_line(error)


def whole(*shape, value=0, dtype=torch.int64):
    return torch.full(shape, value, dtype=dtype)


@pytest.mark.parametrize("method", ["decode", "embed"])
@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (whole(5), ["(B, 1..4, L)", "(5,)"]),
        (whole(1, 5, 5), ["(B, 1..4, L)", "(1, 5, 5)"]),
        (whole(1, 0, 5), ["(B, 1..4, L)", "(1, 0, 5)"]),
        (whole(1, 4, 5, dtype=torch.bool), ["integers", "bool"]),
        (whole(1, 4, 5, dtype=torch.float32), ["integers", "float32"]),
        (whole(1, 4, 5, value=64), ["0..63", "64"]),
        (whole(1, 4, 5, value=-1), ["0..63", "-1"]),
    ],
)
def test_decode_refuses_wrong_codes(exact, method, codes, words):
    with pytest.raises(XycodecError) as error:
        getattr(exact, method)(codes)
    one_line(error, *words)


def test_decode_takes_a_whole_window(exact):
    assert exact.decode(whole(1, 1, 50)).audio.shape == (1, WINDOW)


@pytest.mark.exact
@pytest.mark.parametrize("samples", [1, 1281, 5200, 9000, 31_000])
@pytest.mark.parametrize("reference", [False, True])
def test_thread_count_changes_not_a_bit_of_the_latents(threads, reference, samples):
    codec = random_codec(CONFIGS["xy-random"])
    codec.reference = reference
    audio = torch.randn(1, samples).mul(0.1)
    results = []
    for count in (1, 2, 3, 5, 8, 16):
        threads(count)
        with torch.no_grad():
            results.append(codec.encode_latents(audio, [samples])[0])
    assert all(torch.equal(result, results[0]) for result in results)
