import math

import numpy as np
import pytest
import torch
from tests.processes import start_two
from torch import distributed as dist

from xycodec.distributed import all_reduce_, world_size
from xycodec.errors import ConfigError
from xycodec.losses.adversarial import adversarial_loss, discriminator_loss, feature_matching, plain_feature_matching
from xycodec.losses.mel import MultiScaleMel
from xycodec.losses.semantic import semantic_distance
from xycodec.nn.discriminators import DiscriminatorOutput, Discriminators

RATE = 16_000


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def slaney(hz):
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)


def slaney_hz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)


def filters(window, bands, rate):
    """Triangles over the FFT bins, one at a time, each of unit area in Hz: (bands, window // 2 + 1)."""
    hz = np.arange(window // 2 + 1) * rate / window
    edges = [slaney_hz(mel) for mel in np.linspace(0, slaney(rate / 2), bands + 2)]
    return np.stack([np.interp(hz, edges[i : i + 3], [0, 1, 0]) * 2 / (edges[i + 2] - edges[i]) for i in range(bands)])


def log_mel(audio, window, bands, rate):
    """Frame by frame: (frames, bands)."""
    hop, half = window // 4, window // 2
    padded = np.pad(audio, half, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    triangles = filters(window, bands, rate)
    frames = []
    for start in range(0, len(audio) + 1, hop):
        magnitude = np.abs(np.fft.rfft(padded[start : start + window] * hann)) / np.sqrt(window)
        frames.append(np.log10(np.maximum(triangles @ magnitude, 1e-5)))
    return np.stack(frames)


SCALES = tuple(zip((32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320), strict=True))


def naive(decoded, target, rate, length=None, scales=SCALES):
    """The distance of two arrays; `length` keeps the frames that start before it."""
    total = 0
    for window, bands in scales:
        difference = np.abs(log_mel(decoded, window, bands, rate) - log_mel(target, window, bands, rate))
        starts = np.arange(len(difference)) * (window // 4)
        total += difference[starts < (length or np.inf)].mean()
    return total


def value_of(distance):
    return lambda *inputs: distance(*inputs).value()


# multi-scale mel


@pytest.mark.parametrize("rate", [16_000, 24_000])
@pytest.mark.parametrize("samples", [1025, 4001])
def test_equals_a_computation_frame_by_frame(rate, samples):
    decoded, target = noise(samples), noise(samples, seed=1) * torch.linspace(0, 3, samples)
    expected = naive(decoded.double().numpy(), target.double().numpy(), rate)
    assert expected > 0.5
    assert MultiScaleMel(rate)(decoded[None], target[None]).value().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("length", [1, 2999, 3072])
def test_only_frames_that_start_within_an_item_count(length):
    decoded, target = noise(5000), noise(5000, seed=1)
    cut = [np.where(np.arange(5000) < length, audio.double().numpy(), 0) for audio in (decoded, target)]
    expected = naive(*cut, RATE, length)
    value = MultiScaleMel(RATE)(decoded[None], target[None], torch.tensor([length])).value()
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_is_the_mean_over_its_items():
    decoded, target = noise(3, 5000), noise(3, 5000, seed=1)
    distance = value_of(MultiScaleMel(RATE))
    alone = [distance(decoded[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(distance(decoded, target), torch.stack(alone).mean())


@pytest.mark.parametrize("lengths", [None, torch.tensor([6000, 2500])])
def test_equal_audio_has_no_distance(lengths):
    audio = noise(2, 6000)
    assert MultiScaleMel(RATE)(audio, audio.clone(), lengths).value().item() == 0


def test_symmetric_and_larger_for_what_is_farther():
    distance, audio = value_of(MultiScaleMel(RATE)), noise(1, 8000)
    near, far = audio * 1.1, audio * 4
    assert distance(audio, near).item() == distance(near, audio).item()
    # log10 of a gain, once per window length, wherever no band is at its floor
    assert distance(audio, far).item() == pytest.approx(7 * np.log10(4), rel=0.02)
    assert 0 < distance(audio, near) < distance(audio, far)


def test_what_lies_past_an_items_end_is_ignored():
    distance, lengths = value_of(MultiScaleMel(RATE)), torch.tensor([8000, 3000, 1])
    decoded, target = noise(3, 8000), noise(3, 8000, seed=1)
    expected = distance(decoded, target, lengths)
    for seed in (2, 3):
        for padded in (decoded, target):
            padded[1, 3000:] = noise(5000, seed=seed)
            padded[2, 1:] = 7.0
        assert distance(decoded, target, lengths).item() == expected.item()
    decoded[1, 2999] += 1
    assert distance(decoded, target, lengths).item() != expected.item()


def test_more_padding_changes_nothing():
    distance = value_of(MultiScaleMel(RATE))
    lengths, decoded, target = torch.tensor([3000, 5000]), noise(2, 7000), noise(2, 7000, seed=1)
    longer = [torch.nn.functional.pad(audio, (0, 4321)) for audio in (decoded, target)]
    torch.testing.assert_close(distance(*longer, lengths), distance(decoded, target, lengths))


def test_every_frame_of_a_batch_weighs_the_same():
    """The mean is over valid frames, so an item weighs as much as it is long."""
    distance, n = value_of(MultiScaleMel(RATE)), 64_000
    target = noise(2, n)
    decoded = torch.stack([target[0], target[1] * 10])
    half = distance(decoded, target, torch.tensor([n, n])).item()
    tenth = distance(decoded, target, torch.tensor([n, n // 9])).item()
    assert half == pytest.approx(3.5, rel=0.02)
    assert tenth == pytest.approx(0.7, rel=0.06)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 5000], [1, 1]])
def test_short_and_empty_items_give_a_finite_number(lengths):
    value = MultiScaleMel(RATE)(noise(2, 5000), noise(2, 5000, seed=1), torch.tensor(lengths)).value()
    assert torch.isfinite(value)
    assert (value.item() == 0) == (max(lengths) == 0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e4])
def test_gradients_are_finite(scale):
    decoded = (noise(2, 4000) * scale).requires_grad_()
    MultiScaleMel(RATE)(decoded, noise(2, 4000, seed=1), torch.tensor([4000, 1500])).value().backward()
    assert torch.isfinite(decoded.grad).all()
    assert (decoded.grad[1, 1500:] == 0).all()
    if scale == 1:
        assert (decoded.grad[0] != 0).any()


def test_following_the_gradient_lessens_the_distance():
    distance, target = value_of(MultiScaleMel(RATE)), noise(1, 4000)
    decoded = noise(1, 4000, seed=1).requires_grad_()
    before = distance(decoded, target)
    before.backward()
    after = distance(decoded.detach() - 0.1 * decoded.grad, target)
    assert after < before


def test_nothing_of_it_is_saved():
    assert MultiScaleMel(RATE).state_dict() == {}


def test_one_entry_per_window_counts_its_frames():
    decoded, target, lengths = noise(2, 5000), noise(2, 5000, seed=1), torch.tensor([5000, 1025])
    whole, cut = MultiScaleMel(RATE)(decoded, target), MultiScaleMel(RATE)(decoded, target, lengths)
    for entry, scale in enumerate(SCALES):
        hop = scale[0] // 4
        assert int(whole.count[entry]) == 2 * (5000 // hop + 1)
        assert int(cut.count[entry]) == math.ceil(5000 / hop) + math.ceil(1025 / hop)
        expected = [naive(*(a[i].double().numpy() for a in (decoded, target)), RATE, scales=[scale]) for i in (0, 1)]
        assert float(whole.total[entry] / whole.count[entry]) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("cut", [1, 2])
def test_parts_of_a_batch_join_to_the_whole(cut):
    decoded, target, lengths = noise(3, 5000), noise(3, 5000, seed=1), torch.tensor([5000, 1500, 2500])
    distance = MultiScaleMel(RATE)
    parts = [distance(decoded[part], target[part], lengths[part]) for part in (slice(cut), slice(cut, None))]
    whole, joined = distance(decoded, target, lengths), parts[0] + parts[1]
    assert torch.equal(joined.count, whole.count)
    torch.testing.assert_close(joined.total, whole.total)


def test_other_windows_and_bins():
    decoded, target = noise(3000), noise(3000, seed=1)
    scales = [(64, 6), (256, 20), (256, 40)]
    expected = naive(decoded.double().numpy(), target.double().numpy(), RATE, scales=scales)
    distance = MultiScaleMel(RATE, windows=(64, 256, 256), bins=(6, 20, 40))
    assert distance(decoded[None], target[None]).value().item() == pytest.approx(expected, rel=1e-4)


def test_windows_without_bins_are_refused():
    with pytest.raises(ConfigError, match="7 windows but 2 numbers of bins"):
        MultiScaleMel(RATE, bins=(64, 64))


def test_float32_under_autocast():
    decoded, target, lengths = noise(2, 5000), noise(2, 5000, seed=1), torch.tensor([5000, 2500])
    distance = MultiScaleMel(RATE)
    expected = distance(decoded.bfloat16().float(), target, lengths).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = distance(decoded.bfloat16(), target, lengths).total
    assert torch.equal(got, expected)


# between discriminators' outputs


def outputs(seed, batch=3, dtype=torch.float32):
    """Two discriminators of unlike sizes: their logits, and two and three maps."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(batch, *shape, generator=generator) + 0.3).to(dtype).requires_grad_()

    return [
        DiscriminatorOutput(draw(11), [draw(4, 9, 2), draw(1, 11)]),
        DiscriminatorOutput(draw(1, 5, 3), [draw(2, 7, 3), draw(3, 6), draw(2, 5, 3)]),
    ]


def numbers(tensor):
    return tensor.detach().double().flatten().tolist()


def mean(values):
    return math.fsum(values) / len(values)


def naive_losses(real, fake):
    """(discriminators', adversarial, feature matching), number by number."""
    judged, fooled, matched = [], [], []
    for r, f in zip(real, fake, strict=True):
        judged.append(mean([(1 - x) ** 2 + y**2 for x, y in zip(numbers(r.logits), numbers(f.logits), strict=True)]))
        fooled.append(mean([(1 - y) ** 2 for y in numbers(f.logits)]))
        maps = []
        for of_real, of_fake in zip(r.features, f.features, strict=True):
            x, y = numbers(of_real), numbers(of_fake)
            maps.append(mean([abs(a - b) for a, b in zip(x, y, strict=True)]) / mean([abs(a) for a in x]))
        matched.append(mean(maps))
    return mean(judged), mean(fooled), mean(matched)


def losses(real, fake):
    return discriminator_loss(real, fake), adversarial_loss(fake), feature_matching(real, fake)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adversarial_losses_equal_loops(dtype):
    real, fake = outputs(1, dtype=dtype), outputs(2, dtype=dtype)
    got = losses(real, fake)
    for loss, expected in zip(got, naive_losses(real, fake), strict=True):
        assert loss.total.dtype == loss.count.dtype == torch.float32
        assert float(loss.detach().value()) == pytest.approx(expected, rel=1e-5)
    assert [len(loss.count) for loss in got] == [2, 2, 5]
    assert got[0].count.tolist() == got[1].count.tolist() == [33.0, 45.0]


def test_known_values():
    ones, zeros = (DiscriminatorOutput(torch.full((2, 5), x), [torch.full((2, 3), 1 + x)]) for x in (1.0, 0.0))
    assert [float(loss.value()) for loss in losses([ones], [zeros])] == [0.0, 1.0, 0.5]
    assert [float(loss.value()) for loss in losses([zeros], [ones])] == [2.0, 0.0, 1.0]


def test_plain_feature_matching_equals_a_loop():
    real, fake = outputs(1), outputs(2)
    maps = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r.features, f.features, strict=True)]
    expected = mean([mean([abs(a - b) for a, b in zip(numbers(x), numbers(y), strict=True)]) for x, y in maps])
    loss = plain_feature_matching(real, fake)
    assert float(loss.detach().value()) == pytest.approx(expected, rel=1e-5)
    assert loss.count.tolist() == [x.numel() for x, _ in maps]
    loss.value().backward()
    assert all(x.grad is None for x, _ in maps)
    for x, y in maps:
        torch.testing.assert_close(y.grad, torch.sign(y - x).detach() / (5 * y.numel()))


def part(output, span):
    return [DiscriminatorOutput(each.logits[span], [x[span] for x in each.features]) for each in output]


@pytest.mark.parametrize("cut", [1, 2])
def test_losses_of_two_parts_join_to_the_whole(cut):
    def every(real, fake):
        return *losses(real, fake), plain_feature_matching(real, fake)

    real, fake = outputs(1), outputs(2)
    whole = every(real, fake)
    first, second = (every(part(real, span), part(fake, span)) for span in (slice(cut), slice(cut, None)))
    for one, other, expected in zip(first, second, whole, strict=True):
        joined = one + other
        torch.testing.assert_close(joined.total, expected.total)
        torch.testing.assert_close(joined.count, expected.count)


def test_where_the_gradients_go():
    real, fake = outputs(1), outputs(2)
    feature_matching(real, fake).value().backward()
    assert all(x.grad is None for each in real for x in (each.logits, *each.features))
    scale = [map_.detach().abs().sum() for each in real for map_ in each.features]
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r.features, f.features, strict=True)]
    for (x, y), size, maps in zip(pairs, scale, (2, 2, 3, 3, 3), strict=True):
        torch.testing.assert_close(y.grad, torch.sign(y - x).detach() / (2 * maps * size))
    adversarial_loss(fake).value().backward()
    for each in fake:
        torch.testing.assert_close(each.logits.grad, (each.logits.detach() - 1) / each.logits.numel())


def test_outputs_that_do_not_pair_up_are_refused():
    for loss in (discriminator_loss, feature_matching, plain_feature_matching):
        with pytest.raises(ValueError, match="shorter"):
            loss(outputs(1), outputs(2)[:1])


@pytest.mark.long
def test_discriminators_learn_to_tell_and_the_audio_to_pass():
    built = Discriminators(channels=4)
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-3)
    real, decoded = noise(4, 2500), (noise(4, 2500, seed=1) * 0.3).requires_grad_()
    before = float(discriminator_loss(built(real), built(decoded.detach())).detach().value())
    for _ in range(25):
        optimizer.zero_grad()
        loss = discriminator_loss(built(real), built(decoded.detach())).value()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < before / 2
    built.requires_grad_(False).eval()

    def generator_loss(audio):
        fake = built(audio)
        return adversarial_loss(fake).value() + feature_matching(built(real), fake).value()

    before = generator_loss(decoded)
    before.backward()
    step = 0.01 * decoded.grad / decoded.grad.square().mean().sqrt()
    assert generator_loss(decoded.detach() - step) < before


# between features


def test_semantic_distance_is_over_the_frames_shown():
    decoded, target = noise(3, 7, 5).requires_grad_(), noise(3, 7, 5, seed=1).requires_grad_()
    lengths = (7, 4, 0)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    shown = [
        (a - b) ** 2
        for i, length in enumerate(lengths)
        for a, b in zip(numbers(decoded[i, :length]), numbers(target[i, :length]), strict=True)
    ]
    distance = semantic_distance(decoded, target, mask)
    assert distance.count.tolist() == [11.0]
    assert float(distance.detach().value()) == pytest.approx(mean(shown), rel=1e-5)
    distance.value().backward()
    assert target.grad is None
    assert torch.equal(decoded.grad.any(dim=2), mask)
    everything, expected = torch.ones(3, 7, dtype=torch.bool), mean(numbers((decoded - target) ** 2))
    for seen in (semantic_distance(decoded, target), semantic_distance(decoded, target, everything)):
        assert float(seen.detach().value()) == pytest.approx(expected, rel=1e-5)
    first, rest = (semantic_distance(decoded[s], target[s], mask[s]) for s in (slice(1), slice(1, None)))
    torch.testing.assert_close((first + rest).value(), distance.value())


# two processes


def gradients(rank=None):
    """Losses and gradients of a narrow set of discriminators; `rank` takes 1 or 2 of 3 clips, None all of them."""
    torch.manual_seed(3)
    built = Discriminators(channels=4)
    share = {None: slice(None), 0: slice(1), 1: slice(1, None)}[rank]
    real, decoded = noise(3, 2100)[share], noise(3, 2100, seed=1)[share] * 0.5
    output = built(torch.cat([real, decoded]))
    clips = len(real)
    both = losses(part(output, slice(clips)), part(output, slice(clips, None)))
    parts = world_size()
    shares = torch.stack([loss.share(all_reduce_(loss.count.clone()), parts) for loss in both])
    shares.sum().backward()
    averaged = [all_reduce_(value.grad) / parts for value in built.parameters()]
    return all_reduce_(shares.detach()) / parts, averaged


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(gradients(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_of_uneven_share_equal_one(tmp_path):
    start_two(process, (tmp_path,))
    expected_values, expected = gradients()
    for rank in range(2):
        values, got = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(values, expected_values)
        for ours, whole in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, whole, atol=1e-6, rtol=1e-3)
