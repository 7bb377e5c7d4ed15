import copy
import math

import numpy as np
import pytest
import torch
from tests.processes import start_two
from torch import distributed as dist

import reference
from xycodec.nn.mean import Mean
from xycodec.nn.quantize import ResidualVectorQuantizer, codebook_perplexity, codebook_usage

BUFFERS = ("codebook", "embed_avg", "cluster_size", "inited")


def make(**changes):
    settings = {"input_dim": 6, "n_q": 3, "codebook_size": 8, "codebook_dim": 4, **changes}
    return ResidualVectorQuantizer(**settings)


def make_ready(count=20.0, seed=1, **changes):
    """A quantizer whose codebooks are set, all codes alive."""
    quantizer = make(**changes)
    generator = torch.Generator().manual_seed(seed)
    scale = 0.6 ** torch.arange(quantizer.n_q).view(-1, 1, 1)
    quantizer.codebook.copy_(torch.randn(quantizer.codebook.shape, generator=generator) * scale)
    quantizer.cluster_size.copy_(count * (1 + torch.rand(quantizer.cluster_size.shape, generator=generator)))
    quantizer.embed_avg.copy_(quantizer.codebook * quantizer.cluster_size[..., None])
    quantizer.inited.fill_(True)
    return quantizer


def as_identity(quantizer):
    """Turn both maps into identities, so that the rows to quantize are the input."""
    quantizer.fold_weight_norm()
    with torch.no_grad():
        for proj in (quantizer.input_proj, quantizer.output_proj):
            torch.nn.init.eye_(proj.weight)
            proj.bias.zero_()
    return quantizer


def buffers(quantizer):
    return {name: getattr(quantizer, name).clone() for name in BUFFERS}


def assert_same(got, expected, atol=0.0):
    for name in BUFFERS:
        torch.testing.assert_close(got[name], expected[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def rows_of(x, quantizer):
    return reference.linear(reference.array(x), quantizer.input_proj).reshape(-1, quantizer.codebook.shape[-1])


# codes and back


def test_encode_equals_a_loop():
    quantizer = make_ready()
    x = torch.randn(2, 15, 6)
    got = quantizer.encode(x, 3)
    codes, _ = reference.quantize(rows_of(x, quantizer), reference.array(quantizer.codebook))
    assert got.shape == (2, 3, 15)
    assert got.dtype == torch.int64
    assert np.array_equal(got.transpose(0, 1).flatten(1).numpy(), codes)


def test_fewer_layers_are_a_prefix():
    quantizer = make_ready()
    x = torch.randn(2, 15, 6)
    full = quantizer.encode(x, 3)
    for n_q in (1, 2):
        assert torch.equal(quantizer.encode(x, n_q), full[:, :n_q])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_decode_equals_a_loop(layers):
    quantizer = make_ready()
    codes = torch.randint(0, 8, (2, layers, 5))
    got = quantizer.decode(codes)
    assert got.shape == (2, 5, 6)
    books = reference.array(quantizer.codebook)
    for b in range(2):
        total = np.stack([sum(books[i, codes[b, i, t]] for i in range(layers)) for t in range(5)])
        expected = reference.linear(total, quantizer.output_proj)
        np.testing.assert_allclose(reference.array(got[b]), expected, atol=1e-5)


def test_first_of_equal_codes_wins():
    quantizer = as_identity(make_ready(input_dim=4))
    quantizer.codebook[:, 5] = quantizer.codebook[:, 2]
    x = quantizer.codebook[0, [2, 5]][None]
    assert quantizer.encode(x, 1).flatten().tolist() == [2, 2]


def test_folding_the_weight_norm_changes_nothing():
    quantizer = make_ready()
    with torch.no_grad():
        for proj in (quantizer.input_proj, quantizer.output_proj):
            proj.parametrizations.weight.original0.mul_(1.7)
    x = torch.randn(2, 15, 6)
    codes = quantizer.encode(x, 3)
    audio = quantizer.decode(codes)
    quantizer.fold_weight_norm()
    quantizer.fold_weight_norm()
    assert torch.equal(quantizer.encode(x, 3), codes)
    torch.testing.assert_close(quantizer.decode(codes), audio, atol=1e-6, rtol=0)
    assert {name for name, _ in quantizer.named_parameters()} == {
        f"{side}_proj.{part}" for side in ("input", "output") for part in ("weight", "bias")
    }


@pytest.mark.parametrize("train", [False, True])
def test_forward_gives_exactly_the_decoded_codes(train):
    quantizer = make_ready().train(train)
    before = copy.deepcopy(quantizer)
    x = torch.randn(2, 15, 6)
    out = quantizer(x)
    assert torch.equal(out.codes, before.encode(x, 3))
    assert torch.equal(out.quantized, before.decode(out.codes))


def test_forward_skips_padding():
    quantizer = make_ready().eval()
    x = torch.randn(2, 15, 6)
    mask = torch.arange(15) < torch.tensor([[15], [9]])
    out = quantizer(x, mask)
    valid = mask[:, None].expand(-1, 3, -1)
    assert torch.equal(out.codes[valid], quantizer.encode(x, 3)[valid])
    assert (out.codes[~valid] == 0).all()
    torch.testing.assert_close(out.quantized[0], quantizer.decode(out.codes)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(out.quantized[1, 9:], quantizer.output_proj.bias.expand(6, -1), atol=1e-6, rtol=0)
    assert out.counts.sum(dim=1).tolist() == [24.0] * 3
    for layer in range(3):
        expected = torch.bincount(out.codes[:, layer][mask], minlength=8)
        assert torch.equal(out.counts[layer], expected.float())


def test_float32_under_autocast():
    quantizer = make_ready()
    x = torch.randn(2, 300, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = copy.deepcopy(quantizer)
        out = half(x.bfloat16())
        codes = quantizer.encode(x.bfloat16(), 3)
        decoded = quantizer.decode(codes)
    alone = copy.deepcopy(quantizer)
    expected = alone(x.bfloat16().float())
    assert out.quantized.dtype == decoded.dtype == out.commitment_loss.total.dtype == torch.float32
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(out.commitment_loss.value(), expected.commitment_loss.value())
    assert torch.equal(codes, expected.codes)
    assert torch.equal(decoded, quantizer.decode(codes))
    assert_same(buffers(half), buffers(alone))


# gradients and losses


def test_gradient_passes_straight_through():
    quantizer = as_identity(make_ready(input_dim=4))
    x = torch.randn(2, 5, 4, requires_grad=True)
    weights = torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    (quantizer(x, mask).quantized * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights * mask[..., None], atol=1e-6, rtol=0)


@pytest.mark.parametrize("commit_every_layer", [True, False])
@pytest.mark.parametrize("commitment", ["l1", "l2"])
def test_commitment_equals_a_loop(commitment, commit_every_layer):
    quantizer = as_identity(make_ready(input_dim=4, commitment=commitment, commit_every_layer=commit_every_layer))
    x = torch.randn(2, 5, 4, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    books = reference.array(quantizer.codebook)
    codes, inputs = reference.quantize(reference.array(x[mask]), books)
    loss = quantizer(x, mask).commitment_loss
    loss.value().backward()
    expected, gradient = [], np.zeros((8, 4))
    for layer in range(3):
        difference = inputs[layer] - books[layer, codes[layer]]
        expected.append((np.abs(difference) if commitment == "l1" else difference**2).mean())
        if layer == 0 or commit_every_layer:
            gradient += (np.sign(difference) if commitment == "l1" else 2 * difference) / difference.size
    assert loss.count.tolist() == [8.0] * 3
    assert (loss.detach().total / loss.count).tolist() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(reference.array(x.grad[mask]), gradient, atol=1e-6)
    assert (x.grad[~mask] == 0).all()


@pytest.mark.parametrize("commit_every_layer", [True, False])
def test_gradient_of_the_deeper_layers_commitment(commit_every_layer):
    quantizer = as_identity(make_ready(input_dim=4, n_q=2, commit_every_layer=commit_every_layer))
    x = quantizer.codebook[0, 3].clone().view(1, 1, 4).requires_grad_()  # the first layer has no distance left
    quantizer(x).commitment_loss.value().backward()
    assert bool((x.grad != 0).any()) is commit_every_layer


# learning


def test_moving_averages_equal_a_loop():
    quantizer = make_ready(decay=0.9, dead_code_threshold=0.0)
    state = {name: reference.array(value) for name, value in buffers(quantizer).items()}
    for step in range(3):
        x = torch.randn(2, 10, 6)
        mask = torch.arange(10) < torch.tensor([[10], [10 - 3 * step]])
        rows = reference.linear(reference.array(x[mask]), quantizer.input_proj)
        codes, inputs = reference.quantize(rows, state["codebook"])
        out = quantizer(x, mask)
        assert np.array_equal(out.codes.transpose(1, 2)[mask].T.numpy(), codes)
        for layer in range(3):
            new = reference.moving_average(
                inputs[layer], codes[layer], state["cluster_size"][layer], state["embed_avg"][layer], decay=0.9
            )
            for name, value in zip(("codebook", "cluster_size", "embed_avg"), new, strict=True):
                state[name][layer] = value
        for name in ("codebook", "cluster_size", "embed_avg"):
            np.testing.assert_allclose(reference.array(getattr(quantizer, name)), state[name], atol=2e-5, rtol=1e-5)


def test_counts_are_smoothed():
    quantizer = as_identity(make_ready(input_dim=4, n_q=1, dead_code_threshold=0.0))
    quantizer.cluster_size.fill_(1e-4)  # small counts make the smoothing visible
    quantizer.embed_avg.copy_(quantizer.codebook * 1e-4)
    x = quantizer.codebook[0, :1].clone()[None]
    state = {name: reference.array(value[0]) for name, value in buffers(quantizer).items()}
    quantizer(x)
    book, *_ = reference.moving_average(
        reference.array(x[0]), [0], state["cluster_size"], state["embed_avg"], decay=0.99
    )
    np.testing.assert_allclose(reference.array(quantizer.codebook[0]), book, atol=1e-5)
    assert quantizer.codebook[0, 1:].norm() < 0.95 * np.linalg.norm(state["codebook"][1:])


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_nothing_learns_in_eval_or_without_gradients(how, ready):
    quantizer = make_ready() if ready else make()
    quantizer.train(how != "eval")
    before = buffers(quantizer)
    with torch.set_grad_enabled(how != "no_grad"):
        quantizer(torch.randn(2, 15, 6))
    assert_same(buffers(quantizer), before)


def test_other_padding_gives_the_same_codebooks():
    x = torch.randn(2, 9, 6)
    x[1, 5:] = 50.0
    longer = torch.cat([x, torch.full((2, 8, 6), 99.0)], dim=1)
    fresh, results = make(codebook_size=4), []
    for batch in (x, longer):
        quantizer = copy.deepcopy(fresh)
        torch.manual_seed(3)
        for _ in range(3):
            out = quantizer(batch, torch.arange(batch.shape[1]) < torch.tensor([[9], [5]]))
        results.append((buffers(quantizer), out.commitment_loss.value()))
    assert_same(results[0][0], results[1][0], atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=0)


def test_batch_without_valid_frames_changes_nothing():
    quantizer = make_ready()
    quantizer(torch.randn(2, 15, 6))
    before = buffers(quantizer)
    out = quantizer(torch.randn(2, 15, 6), torch.zeros(2, 15, dtype=torch.bool))
    assert float(out.commitment_loss.detach().value()) == 0
    assert (out.counts == 0).all()
    torch.testing.assert_close(out.quantized, quantizer.output_proj.bias.expand(2, 15, -1), atol=1e-6, rtol=0)
    (out.quantized.sum() + out.commitment_loss.value()).backward()
    assert all(torch.isfinite(value.grad).all() for value in quantizer.parameters())
    assert_same(buffers(quantizer), before)


def test_batch_without_valid_frames_does_not_count_as_the_first():
    quantizer = make(codebook_size=4)
    quantizer(torch.randn(2, 15, 6), torch.zeros(2, 15, dtype=torch.bool))
    assert not quantizer.inited.any()
    assert (quantizer.codebook == 0).all()
    quantizer(torch.randn(2, 15, 6))
    assert quantizer.inited.all()
    assert (quantizer.codebook.abs().sum(dim=2) > 0).all()


# dead codes


def test_dead_codes_start_afresh_from_the_batch():
    quantizer = as_identity(make_ready(count=100.0, input_dim=4, codebook_size=8))
    quantizer.cluster_size[:, 3:6] = 0.5
    quantizer.embed_avg[:, 3:6] = 100.0
    quantizer.codebook[:, 3:6] = 200.0
    x = torch.randn(1, 40, 4)
    _, inputs = reference.quantize(reference.array(x[0]), reference.array(quantizer.codebook))
    alive = buffers(quantizer)
    quantizer(x)
    for layer in range(3):
        fresh = quantizer.codebook[layer, 3:6]
        # Each is the residual that its own layer saw in some frame, and no two are one.
        distance = np.abs(reference.array(fresh)[:, None] - inputs[layer][None]).max(axis=-1)
        assert (distance.min(axis=1) < 1e-5).all()
        assert len(set(distance.argmin(axis=1))) == 3
        assert quantizer.cluster_size[layer, 3:6].tolist() == [4.0] * 3
        torch.testing.assert_close(quantizer.embed_avg[layer, 3:6], 4 * fresh)
    others = [0, 1, 2, 6, 7]
    assert (quantizer.cluster_size[:, others] > 10).all()
    torch.testing.assert_close(quantizer.codebook[:, others], alive["codebook"][:, others], atol=0.2, rtol=0)


def test_replaced_code_survives_the_next_step():
    quantizer = as_identity(make_ready(input_dim=4, n_q=1))
    quantizer.cluster_size[0, 3] = 0.1
    quantizer.embed_avg[0, 3] = -5.0
    quantizer.codebook[0, 3] = -50.0
    x = torch.full((1, 12, 4), 9.0) + 0.01 * torch.randn(1, 12, 4)
    quantizer(x)
    new = quantizer.codebook[0, 3].clone()
    assert (new - 9).abs().max() < 0.1
    for _ in range(3):
        out = quantizer(x)
        assert 3 in out.codes
    torch.testing.assert_close(quantizer.codebook[0, 3], new, atol=0.05, rtol=0)
    assert quantizer.cluster_size[0, 3] > 2


def test_replaced_code_has_69_steps_to_be_chosen():
    quantizer = as_identity(make_ready(count=100.0, input_dim=4, n_q=1))
    quantizer.cluster_size[0, 3] = 0.0
    quantizer(torch.full((1, 12, 4), 9.0))
    new = quantizer.codebook[0, 3].clone()
    assert new.tolist() == [9.0] * 4
    elsewhere = quantizer.codebook[0, :3].repeat(4, 1)[None].clone()
    for _ in range(68):
        assert 3 not in quantizer(elsewhere).codes
    assert float(quantizer.cluster_size[0, 3]) == pytest.approx(4 * 0.99**68)
    torch.testing.assert_close(quantizer.codebook[0, 3], new, atol=0.01, rtol=0)
    quantizer(elsewhere)
    assert float(quantizer.cluster_size[0, 3]) == 4
    assert (quantizer.codebook[0, 3] - new).norm() > 5


def test_code_at_the_threshold_is_alive():
    quantizer = as_identity(make_ready(input_dim=4, n_q=1, dead_code_threshold=2.0, decay=1.0))
    quantizer.cluster_size[0, 3:5] = torch.tensor([2.0, 1.999])
    quantizer.embed_avg[0, 3:5] = 0.0
    quantizer(torch.randn(1, 12, 4))
    assert (quantizer.embed_avg[0, 3] == 0).all()
    assert (quantizer.embed_avg[0, 4] != 0).all()


@pytest.mark.parametrize("average", [1e-3, 1.0, 15.0])
def test_where_vectors_are_few_only_rare_codes_are_dead(average):
    quantizer = as_identity(make_ready(input_dim=4, n_q=2, dead_code_threshold=2.0, decay=1.0))
    quantizer.cluster_size[0] = torch.tensor([1.1, 1.1, 1.1, 1.1, 1.1, 2.3, 0.101, 0.099]) * average
    quantizer.cluster_size[1] = 100.0
    quantizer.cluster_size[1, 2] = 1.9
    before = buffers(quantizer)
    quantizer(torch.randn(1, 12, 4))
    changed = quantizer.cluster_size != before["cluster_size"]
    assert changed.nonzero().tolist() == [[0, 7], [1, 2]]
    threshold = float(before["cluster_size"][0].mean()) / 10
    assert 0.099 * average < threshold < 0.101 * average
    assert float(quantizer.cluster_size[0, 7]) == pytest.approx(2 * threshold)
    assert float(quantizer.cluster_size[1, 2]) == 4


def test_a_few_vectors_a_step_do_not_kill_the_codebook():
    """Two vectors a step for 16 codes: each is chosen every eighth step, and the mean count is an eighth."""
    quantizer = as_identity(make_ready(count=2 / 16, input_dim=4, n_q=1, codebook_size=16))
    spread = quantizer.codebook[0].mul_(10).clone()
    quantizer.embed_avg[0] = spread * quantizer.cluster_size[0][:, None]
    excess = float(quantizer.cluster_size.sum()) - 2
    for step in range(200):
        start = 2 * step % 16
        quantizer(spread[None, start : start + 2])
    torch.testing.assert_close(quantizer.codebook[0], spread, atol=0.1, rtol=0)
    # Of what the counts exceed two in the beginning, a hundredth goes with every step. A replaced code would add some.
    assert float(quantizer.cluster_size.sum()) == pytest.approx(2 + excess * 0.99**200, rel=1e-3)


def test_replacements_are_spread_over_the_batch():
    quantizer = as_identity(make_ready(count=100.0, input_dim=4, n_q=1, codebook_size=8))
    quantizer.cluster_size[0, 1:] = 0.0
    quantizer.codebook[0, 1:] = 1e4
    x = torch.arange(32.0).view(1, 32, 1) + torch.zeros(4)
    seen = set()
    for seed in range(40):
        trial = copy.deepcopy(quantizer)
        torch.manual_seed(seed)
        trial(x)
        drawn = trial.codebook[0, 1:, 0].round().long().tolist()
        assert len({value // 4 for value in drawn}) == 7
        seen.update(drawn)
    assert seen == set(range(32))


def test_threshold_of_zero_replaces_nothing():
    quantizer = make_ready(count=1e-3, dead_code_threshold=0.0)
    before = quantizer.cluster_size.clone()
    out = quantizer(torch.randn(2, 15, 6))
    torch.testing.assert_close(quantizer.cluster_size, 0.99 * before + 0.01 * out.counts)


# the first batch


def first_step(monkeypatch, x, iterations, **changes):
    """Buffers after k-means from the first rows of `x` (N, 4), with the moving average switched off."""
    quantizer = as_identity(
        make(input_dim=4, kmeans_iterations=iterations, decay=1.0, dead_code_threshold=0.0, **changes)
    )
    monkeypatch.setattr(quantizer, "_draw", lambda vectors, sizes: vectors[:, : quantizer.codebook_size])
    quantizer(x[None])
    return quantizer


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_k_means_equals_a_loop(monkeypatch, iterations):
    x = torch.randn(60, 4)
    x[3] = 50.0  # a cluster of its own
    quantizer = first_step(monkeypatch, x, iterations)
    rows = reference.array(x)
    for layer in range(3):
        means, counts = reference.k_means(rows, rows[:8], iterations)
        np.testing.assert_allclose(reference.array(quantizer.cluster_size[layer]), np.maximum(counts, 1), atol=1e-5)
        total = means * np.maximum(counts, 1)[:, None]
        np.testing.assert_allclose(reference.array(quantizer.embed_avg[layer]), total, atol=1e-3, rtol=1e-4)
        # No code shrinks by its count at the first step, as the published initialisation makes it.
        np.testing.assert_allclose(reference.array(quantizer.codebook[layer]), means, atol=1e-4, rtol=1e-3)
        rows = rows - means[[reference.nearest(row, means) for row in rows]]
    assert quantizer.inited.tolist() == [True] * 3


def test_empty_clusters_keep_their_mean(monkeypatch):
    x = torch.randn(60, 4)
    x[2] = x[5] = 50.0  # two equal means, far away: the second never wins
    quantizer = first_step(monkeypatch, x, 1, n_q=1)
    assert float(quantizer.cluster_size[0, 5]) == 1
    # Smoothing moves a count, and so its code, by a hundred-thousandth.
    torch.testing.assert_close(quantizer.codebook[0, 5], x[5], atol=0, rtol=5e-5)


def test_k_means_starts_from_different_rows_of_the_batch():
    quantizer = as_identity(make(input_dim=4, n_q=1, decay=1.0, dead_code_threshold=0.0))
    x = torch.randn(8, 4)
    quantizer(x[None])
    torch.testing.assert_close(quantizer.codebook[0].sort(dim=0).values, x.sort(dim=0).values, atol=1e-3, rtol=0)


def test_first_batch_is_quantized_with_the_new_codebooks():
    quantizer = as_identity(make(input_dim=4, n_q=1))
    centres = 10 * torch.randn(8, 4)
    x = centres.repeat(6, 1) + 0.01 * torch.randn(48, 4)
    out = quantizer(x[None])
    assert float(out.commitment_loss.detach().value()) < 30
    assert len(out.codes.unique()) > 1
    assert (out.quantized != 0).any()


def test_k_means_runs_once():
    quantizer = make(codebook_size=4, decay=1.0, dead_code_threshold=0.0)
    quantizer(torch.randn(2, 15, 6))
    before = buffers(quantizer)
    quantizer(torch.randn(2, 15, 6))
    assert_same(buffers(quantizer), before, atol=1e-5)


def test_loaded_codebooks_are_not_initialised_again():
    state = make_ready().state_dict()
    quantizer = make(decay=1.0, dead_code_threshold=0.0)
    quantizer.load_state_dict(state)
    quantizer(torch.randn(2, 15, 6))
    torch.testing.assert_close(quantizer.embed_avg, state["embed_avg"])


def test_loading_an_untouched_state_starts_again():
    quantizer = make_ready()
    x = torch.randn(2, 15, 6)
    quantizer(x)
    quantizer.load_state_dict(make().state_dict())
    quantizer(x)
    assert quantizer.inited.all()
    assert (quantizer.codebook != 0).any()


@pytest.mark.parametrize("frames", [1, 3])
def test_batch_with_fewer_vectors_than_codes(frames):
    quantizer = as_identity(make(input_dim=4, codebook_size=8))
    x = torch.randn(1, frames, 4)
    for _ in range(2):
        out = quantizer(x)
        assert torch.isfinite(out.quantized).all()
    torch.testing.assert_close(out.quantized, x, atol=1e-3, rtol=0)
    # Every code is one of the batch's vectors; none was left at zero.
    distance = torch.cdist(quantizer.codebook[0], x[0])
    assert (distance.min(dim=1).values < 1e-3).all()


def test_codes_left_empty_by_a_small_first_batch_are_soon_in_use():
    quantizer = make(codebook_size=8)
    quantizer(torch.randn(1, 3, 6))
    # The first layer has a code for each vector, so the others saw zeros only.
    assert (quantizer.codebook[1:].abs() < 1e-5).all()
    assert (quantizer.cluster_size[0] > 0.9).sum() == 3
    counts = torch.zeros(3, 8)
    for step in range(100):
        counts += (step >= 80) * quantizer(torch.randn(2, 15, 6)).counts
    assert (counts > 0).all()


# dropout


def test_dropout_keeps_the_first_layers_of_the_first_items():
    quantizer = make_ready(dropout=0.5, n_q=4)
    frozen = copy.deepcopy(quantizer)
    x = torch.randn(20, 3, 6)
    kept = []
    out = quantizer(x)
    for item, codes in zip(out.quantized, out.codes, strict=True):
        errors = [(frozen.decode(codes[None, :k])[0] - item).abs().max() for k in range(1, 5)]
        assert min(errors) < 1e-5
        kept.append(1 + min(range(4), key=lambda k: errors[k]))
    assert kept[10:] == [4] * 10
    assert set(kept[:10]) == {1, 2, 3, 4}
    for layer in range(4):
        assert float(out.counts[layer].sum()) == 3 * sum(k > layer for k in kept)
    torch.testing.assert_close(quantizer.cluster_size, 0.99 * frozen.cluster_size + 0.01 * out.counts)
    codes, inputs = reference.quantize(rows_of(x, frozen), reference.array(frozen.codebook))
    sums = np.zeros((4, 8, 4))
    for layer in range(4):
        for row in range(60):
            if kept[row // 3] > layer:
                sums[layer, codes[layer, row]] += inputs[layer, row]
    expected = 0.99 * reference.array(frozen.embed_avg) + 0.01 * sums
    np.testing.assert_allclose(reference.array(quantizer.embed_avg), expected, atol=1e-4)


def test_dropped_layers_have_no_commitment():
    quantizer = make_ready(dropout=1.0, n_q=2)
    frozen = copy.deepcopy(quantizer)
    x = torch.randn(12, 1, 6)
    out = quantizer(x)
    rows = rows_of(x, frozen)
    codes, inputs = reference.quantize(rows, reference.array(frozen.codebook))
    first, second = (((inputs[i] - reference.array(frozen.codebook)[i, codes[i]]) ** 2).mean(axis=1) for i in range(2))
    one_layer = [
        (frozen.decode(c[None, :1])[0] - q).abs().max() < 1e-5 for c, q in zip(out.codes, out.quantized, strict=True)
    ]
    used = ~np.array([bool(flag) for flag in one_layer])
    assert 0 < used.sum() < 12
    assert float(out.commitment_loss.detach().value()) == pytest.approx(first.mean() + second[used].mean(), rel=1e-5)


def test_no_dropout_in_eval():
    quantizer = make_ready(dropout=1.0).eval()
    x = torch.randn(8, 3, 6)
    out = quantizer(x)
    assert torch.equal(out.quantized, quantizer.decode(out.codes))
    assert (out.counts.sum(dim=1) == 24).all()


# how codes are used


def test_usage():
    counts = torch.tensor([[4.0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]])
    assert codebook_usage(counts).tolist() == [0.25, 1.0, 0.0]


def test_perplexity():
    counts = torch.tensor([[4.0, 0, 0, 0], [5, 5, 5, 5], [1, 3, 0, 0], [0, 0, 0, 0]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert codebook_perplexity(counts).tolist() == pytest.approx([1.0, 4.0, math.exp(entropy), 0.0])


# two processes


def scenario(name):
    """(quantizer, steps): each step is (x, mask, how many of its items the first process takes)."""
    generator = torch.Generator().manual_seed(7)

    def batch(items=5, frames=12):
        return torch.randn(items, frames, 6, generator=generator)

    def mask(*lengths):
        return torch.arange(12) < torch.tensor(lengths)[:, None]

    torch.manual_seed(5)
    full = mask(12, 12, 12, 12, 12)
    if name == "even":
        return make(), [(batch(4), full[:4], 2) for _ in range(3)]
    if name == "uneven":
        return make(), [(batch(), mask(12, 3, 7, 12, 1), cut) for cut in (1, 4, 2)]
    if name == "dead codes":
        quantizer = make_ready()
        quantizer.codebook[:, 4:] += 100
        quantizer.cluster_size[:, 4:] = 0.0
        return quantizer, [(batch(), mask(2, 12, 5, 12, 12), 2) for _ in range(3)]
    if name == "fewer vectors than codes":
        return make(), [(batch(2), mask(2, 3), 1) for _ in range(3)]
    if name == "first rank has no frames":
        return make(), [(batch(), mask(0, 0, 9, 12, 4), 2), (batch(), full, 2)]
    if name == "second rank has no frames":
        return make(), [(batch(), full, 3), (batch(), mask(12, 3, 9, 0, 0), 3)]
    if name == "no frames at all":
        return make(), [(batch(), ~full, 3), (batch(), full, 3), (batch(), full & False, 2)]
    raise ValueError(name)


SCENARIOS = (
    "even",
    "uneven",
    "dead codes",
    "fewer vectors than codes",
    "first rank has no frames",
    "second rank has no frames",
    "no frames at all",
)


def learn(name, rank=None):
    """Run a scenario; `rank` takes its share of every batch, None takes all. Returns the buffers, codes and losses."""
    quantizer, steps = scenario(name)
    torch.manual_seed(11 + (rank or 0))
    codes, losses = [], []
    for x, mask, cut in steps:
        share = {None: slice(None), 0: slice(cut), 1: slice(cut, None)}[rank]
        out = quantizer(x[share], mask[share])
        codes.append(out.codes)
        losses.append(out.commitment_loss.detach())
    return buffers(quantizer), codes, [(loss.total, loss.count) for loss in losses]


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: learn(name, rank) for name in SCENARIOS}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start_two(process, (folder,))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_equal_one(two_processes, name):
    (first, first_codes, first_losses), (second, second_codes, second_losses) = (r[name] for r in two_processes)
    assert_same(first, second)
    expected, codes, losses = learn(name)
    for ours, theirs, whole in zip(first_codes, second_codes, codes, strict=True):
        assert torch.equal(torch.cat([ours, theirs]), whole)
    for ours, theirs, whole in zip(first_losses, second_losses, losses, strict=True):
        joined = Mean(*ours) + Mean(*theirs)
        torch.testing.assert_close((joined.total, joined.count), whole)
    assert_same(first, expected, atol=1e-5)
    assert expected["inited"].all()
    # Where every vector has a code of its own, nothing is left for the layers after the first.
    filled = 1 if name == "fewer vectors than codes" else 3
    assert (expected["codebook"][:filled].abs().sum(dim=-1) > 0).all()
    # Those that started far away and dead have come back.
    assert expected["codebook"].abs().max() < 50


# micro-batches


@pytest.mark.parametrize("layers", [3, 2])
@pytest.mark.parametrize("ready", [True, False])
def test_micro_batches_of_a_step_move_the_codebooks_as_one_batch(ready, layers):
    """Micro-batches equal one batch from k-means on, dead codes included; the third has no frame of its own."""
    whole = as_identity(make_ready(input_dim=4) if ready else make(input_dim=4))
    if ready:
        whole.cluster_size[:, 5:] = 0.0
        whole.codebook[:, 5:] = whole.embed_avg[:, 5:] = 100.0
    parts = copy.deepcopy(whole)
    generator = torch.Generator().manual_seed(3)
    for step in range(3):
        x = torch.randn(6, 10, 4, generator=generator)
        mask = torch.arange(10) < torch.tensor([[10], [4], [7], [0], [10], [1]])
        batches = list(zip(x.split([2, 1, 1, 2]), mask.split([2, 1, 1, 2]), strict=True))
        torch.manual_seed(step)
        expected = whole(x, mask, layers)
        torch.manual_seed(step)
        with parts.one_step(batches, lambda batch: parts(*batch, layers)):
            before = buffers(parts)
            outputs = [parts(*batch, layers) for batch in batches]
            assert_same(buffers(parts), before)
        assert torch.equal(torch.cat([out.codes for out in outputs]), expected.codes)
        assert_same(buffers(parts), buffers(whole), atol=1e-6)
    assert parts.inited.all()
    assert parts.codebook[:layers].abs().max() < 50


def test_a_step_of_nothing_but_silence_starts_and_moves_nothing():
    quantizer = make()
    batches = [torch.randn(1, 5, 6)] * 2
    none = torch.zeros(1, 5, dtype=torch.bool)
    with quantizer.one_step(batches, lambda x: quantizer(x, none)):
        for x in batches:
            quantizer(x, none)
    assert not quantizer.inited.any()
    assert (quantizer.codebook == 0).all()


def test_a_step_that_fails_leaves_the_codebooks_as_they_were():
    quantizer = make_ready()
    before = buffers(quantizer)
    batches = [torch.randn(1, 5, 6)] * 2

    def fail():
        with quantizer.one_step(batches, quantizer):
            quantizer(batches[0])
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert_same(buffers(quantizer), before)
    quantizer(batches[0])
    assert not torch.equal(quantizer.cluster_size, before["cluster_size"])


def test_looking_ahead_takes_no_random_numbers():
    quantizer = make(dropout=0.5)
    batches = [torch.randn(4, 9, 6) for _ in range(2)]
    drawn = []
    torch.manual_seed(1)
    state = torch.get_rng_state()
    quantizer._start_from(batches, lambda x: drawn.append(quantizer(x)))
    after = torch.rand(3)
    torch.set_rng_state(state)
    # All that is drawn is what k-means draws.
    for _ in range(3):
        torch.rand((2, 1, 8), dtype=torch.float64)
    assert len(drawn) == 2
    assert torch.equal(torch.rand(3), after)


# no waiting for the device


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_training_step_asks_nothing_of_the_device(masked, dropout):
    """On `meta` there are no values: whatever would wait for one raises. Autocast does not know that device."""
    quantizer = make_ready(dropout=dropout)
    quantizer(torch.randn(4, 15, 6))
    quantizer.to("meta")
    mask = torch.arange(15) < torch.tensor([[15], [9], [3], [15]])
    out = quantizer._forward(torch.randn(4, 15, 6, device="meta"), mask if masked else None, 2)
    (out.quantized.sum() + out.commitment_loss.value()).backward()
    assert quantizer.input_proj.bias.grad.shape == (4,)


# codebooks as wide as the input


def test_without_maps_the_codes_are_those_of_the_input_itself():
    plain, mapped = make_ready(input_dim=6, codebook_dim=None), as_identity(make_ready(input_dim=6, codebook_dim=6))
    assert set(plain.state_dict()) == set(BUFFERS)
    assert not list(plain.parameters())
    x = torch.randn(2, 9, 6)
    codes = plain.encode(x, 3)
    assert torch.equal(codes, mapped.encode(x, 3))
    expected = sum(plain.codebook[layer][codes[:, layer]] for layer in range(3))
    torch.testing.assert_close(plain.decode(codes), expected)


def test_without_maps_the_codebooks_learn_alike():
    plain, mapped = make_ready(input_dim=6, codebook_dim=None), as_identity(make_ready(input_dim=6, codebook_dim=6))
    x = torch.randn(2, 9, 6)
    one, other = plain.train()(x), mapped.train()(x)
    torch.testing.assert_close(one.quantized, other.quantized)
    torch.testing.assert_close(one.commitment_loss.total, other.commitment_loss.total)
    assert_same(buffers(plain), buffers(mapped), atol=1e-6)
