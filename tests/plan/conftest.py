import pytest
from support import tiny_overlay


@pytest.fixture(scope="session")
def tiny_network(tmp_path_factory):
    """A network overlay that trains in a second."""
    return tiny_overlay(tmp_path_factory.mktemp("network"))
