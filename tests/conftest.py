import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed, and on one thread: pytest -n has the other cores."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads():
    """A function that sets torch's thread count for the test."""
    return torch.set_num_threads
