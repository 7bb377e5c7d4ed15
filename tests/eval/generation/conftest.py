import pytest
from tests.embedding import save_clap


@pytest.fixture(scope="session")
def clap(tmp_path_factory):
    """A folder of a small CLAP."""
    return str(save_clap(tmp_path_factory.mktemp("clap") / "clap"))
