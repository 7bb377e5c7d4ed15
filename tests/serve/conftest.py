import pytest
from tests.serve.servers import running, tiny_codec


@pytest.fixture(scope="session")
def codec():
    return tiny_codec()


@pytest.fixture(scope="session")
def server(codec):
    """(URL, service) of a server for tests that leave it as it was."""
    with running(codec) as (url, service):
        yield url, service


@pytest.fixture(scope="session")
def url(server):
    return server[0]
