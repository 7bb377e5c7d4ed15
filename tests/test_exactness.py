import platform

import pytest
import torch
from tests.exactness import not_claimed


@pytest.fixture
def wheel(monkeypatch):
    """A torch as its wheel for x86 is."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)


def test_bits_are_claimed_of_torchs_wheel_for_x86(wheel):
    assert not_claimed() is None


@pytest.mark.parametrize("name", ["mkl", "mkldnn"])
def test_nothing_is_claimed_of_another_blas(wheel, monkeypatch, name):
    monkeypatch.setattr(getattr(torch.backends, name), "is_available", lambda: False)
    assert "built without" in not_claimed()


def test_nothing_is_claimed_of_another_processor(wheel, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "aarch64" in not_claimed()
