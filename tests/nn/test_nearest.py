"""Search over the codes of a residual quantizer, against exhaustive search, greedy codes and itself."""

from itertools import product

import numpy as np
import pytest
import torch

from xycodec.nn.nearest import _beam, _lowest, nearest, search
from xycodec.nn.quantize import ResidualVectorQuantizer


def books(layers=4, size=16, dim=6, seed=0):
    draws = torch.randn(layers, size, dim, generator=torch.Generator().manual_seed(seed))
    return draws * 0.6 ** torch.arange(layers).view(-1, 1, 1)


def rows(count, dim=6, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def greedy(x, codebooks):
    codes = []
    for codebook in codebooks:
        codes.append(nearest(x, codebook))
        x = x - codebook[codes[-1]]
    return torch.stack(codes)


def errors(x, codebooks, codes):
    """Squared distances (N,) float64 of rows to the sums of their codes (layers, N)."""
    total = sum(book.double()[code] for book, code in zip(codebooks, codes, strict=True))
    return (x.double() - total).square().sum(dim=1)


def by_trial(x, codebooks):
    """Codes (layers, N) of the smallest error of all."""
    paths = torch.tensor(list(product(range(codebooks.shape[1]), repeat=len(codebooks)))).T
    tried = torch.stack([errors(x, codebooks, path[:, None].expand(-1, len(x))) for path in paths.T])
    return paths[:, tried.argmin(dim=0)]


def test_a_wide_search_is_exhaustive():
    codebooks, x = books(3, 4), rows(40)
    best = by_trial(x, codebooks)
    assert torch.equal(search(x, codebooks, 64), best)
    assert not torch.equal(greedy(x, codebooks), best)


def test_a_beam_equals_a_loop():
    codebooks, x, width = books(4, 8), rows(30), 3
    got = search(x, codebooks, width)
    for n, row in enumerate(x.double()):
        beam = [((), row)]
        for book in codebooks.double():
            grown = [((*path, code), left - book[code]) for path, left in beam for code in range(len(book))]
            beam = sorted(grown, key=lambda one: one[1].square().sum().item())[:width]
        first = greedy(x[n : n + 1], codebooks)[:, 0]
        least = errors(x[n : n + 1], codebooks, first[:, None]).item()
        expected = beam[0][0] if beam[0][1].square().sum().item() < least else tuple(first.tolist())
        assert tuple(got[:, n].tolist()) == expected


def test_the_error_is_never_larger_than_that_of_greedy_codes():
    codebooks, x = books(6, 16), rows(3000)
    start = errors(x, codebooks, greedy(x, codebooks))
    means = [start.mean()]
    for width in (2, 4, 16):
        found = errors(x, codebooks, search(x, codebooks, width))
        assert (found <= start * (1 + 1e-5)).all()  # measured in float32, whose roundings decide between equals
        means.append(found.mean())
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.9 * means[0]


def test_the_greedy_path_is_kept_where_the_beam_loses_it():
    codebooks, x = books(6, 16), rows(3000)
    start = errors(x, codebooks, greedy(x, codebooks))
    lost = errors(x, codebooks, _beam(x, codebooks, 2)[0]) > start * (1 + 1e-3)
    assert lost.any()
    assert torch.equal(search(x, codebooks, 2)[:, lost], greedy(x, codebooks)[:, lost])


def test_the_first_of_equals_wins():
    codebooks = books(3, 8)
    codebooks[:, 5:] = codebooks[:, 2:5]
    assert search(rows(200), codebooks, 8).max() < 5
    zeros = torch.zeros(3, 8, 6)
    assert search(rows(5), zeros, 8).tolist() == [[0] * 5] * 3


@pytest.mark.parametrize("width", [2, 16])
def test_no_frame_depends_on_another(width):
    codebooks, x = books(4, 32), rows(150)
    whole = search(x, codebooks, width)
    for n in (0, 1, 63, 64, 149):
        assert torch.equal(search(x[n : n + 1], codebooks, width), whole[:, n : n + 1])
    assert torch.equal(search(x.flip(0), codebooks, width), whole.flip(1))
    assert search(x[:0], codebooks, width).shape == (4, 0)


def test_lowest_orders_negative_numbers_and_zeros():
    values = np.array([[0.0, -1.5, -0.0, 3.0, -2.0, -1.5, 1e-30, -1e-30]], np.float32)
    expected = np.argsort(values, axis=1, kind="stable")
    assert _lowest(torch.from_numpy(values), 8).tolist() == expected.tolist()
    assert _lowest(torch.from_numpy(values), 3).tolist() == expected[:, :3].tolist()


def test_the_quantizer_searches_its_first_layers():
    quantizer = ResidualVectorQuantizer(input_dim=6, n_q=4, codebook_size=16, codebook_dim=None)
    quantizer.codebook.copy_(books())
    x = rows(20).view(2, 10, 6)
    assert torch.equal(quantizer.encode(x, 4, 1), quantizer.encode(x, 4))
    for n_q in (1, 2, 4):
        codes = quantizer.encode(x, n_q, 8)
        assert codes.shape == (2, n_q, 10)
        flat = codes.transpose(0, 1).flatten(1)
        assert torch.equal(flat, search(x.flatten(0, 1), quantizer.codebook[:n_q], 8))
    assert torch.equal(quantizer.encode(x, 1, 8), quantizer.encode(x, 1))
    assert not torch.equal(quantizer.encode(x, 4, 8)[:, :2], quantizer.encode(x, 2, 8))
