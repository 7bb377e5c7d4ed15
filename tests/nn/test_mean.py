import numpy as np
import pytest
import torch

from xycodec.nn.mean import Mean, average_of, masked_mean, plain_mean, sum_of


def test_plain_mean():
    x = torch.randn(3, 7)
    assert float(plain_mean(x).value()) == pytest.approx(x.double().numpy().mean(), rel=1e-5)


def test_masked_mean_takes_what_the_mask_shows():
    x = torch.randn(3, 7)
    mask = torch.arange(7) < torch.tensor([[7], [2], [0]])
    expected = np.mean([float(value) for value, shown in zip(x.flatten(), mask.flatten(), strict=True) if shown])
    for weight in (mask, mask.float()):
        mean = masked_mean(x, weight)
        assert float(mean.value()) == pytest.approx(expected, rel=1e-5)
        assert mean.count.tolist() == [9.0]


@pytest.mark.parametrize("make", [plain_mean, lambda x: masked_mean(x, torch.ones_like(x))])
def test_float32_whatever_it_is_the_mean_of(make):
    x = torch.full((5000,), 1.0, dtype=torch.bfloat16)  # in bfloat16 a sum stops at 256
    mean = make(x)
    assert mean.total.dtype == mean.count.dtype == torch.float32
    assert mean.total.tolist() == mean.count.tolist() == [5000.0]


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_parts_of_uneven_size_join_to_the_whole(cut):
    x = torch.randn(10, 3)
    parts = [plain_mean(x[:cut]), plain_mean(x[cut:])]
    joined = parts[0] + parts[1]
    assert float(joined.value()) == pytest.approx(float(x.mean()), rel=1e-5)
    assert float(parts[0].value() + parts[1].value()) / 2 != pytest.approx(float(x.mean()), rel=1e-3)
    # and as each part sees it: the average of the shares is the mean
    shares = [part.share(joined.count, parts=2) for part in parts]
    assert float(sum(shares) / 2) == pytest.approx(float(x.mean()), rel=1e-5)


def test_gradients_of_the_shares_add_up_to_the_gradient_of_the_whole():
    x = torch.randn(10, 3)
    whole, parted = (x.clone().requires_grad_() for _ in range(2))
    plain_mean(whole.square()).value().backward()
    parts = [plain_mean(parted[:4].square()), plain_mean(parted[4:].square())]
    count = (parts[0] + parts[1]).count
    for part in parts:
        (part.share(count, parts=2) / 2).backward()
    torch.testing.assert_close(parted.grad, whole.grad)


def test_value_is_the_sum_of_the_means():
    assert float(Mean(torch.tensor([6.0, 10.0]), torch.tensor([3.0, 4.0])).value()) == 4.5


def test_sum_and_average_keep_every_entry():
    means = [Mean(torch.tensor([6.0]), torch.tensor([3.0])), Mean(torch.tensor([10.0, 1.0]), torch.tensor([4.0, 2.0]))]
    assert float(sum_of(means).value()) == 5
    assert float(average_of(means).value()) == 2.5
    assert sum_of(means).count.tolist() == average_of(means).count.tolist() == [3.0, 4.0, 2.0]


def test_a_mean_over_nothing_is_zero_with_a_finite_gradient():
    x = torch.randn(4, requires_grad=True)
    for mean in (masked_mean(x, torch.zeros(4, dtype=torch.bool)), plain_mean(x[:0])):
        assert float(mean.value().detach()) == 0
        mean.value().backward()
        assert x.grad.tolist() == [0.0] * 4


def test_detach():
    x = torch.randn(4, requires_grad=True)
    assert plain_mean(x).total.requires_grad
    assert not plain_mean(x).detach().total.requires_grad
    assert torch.equal(plain_mean(x).detach().value(), plain_mean(x).value().detach())
