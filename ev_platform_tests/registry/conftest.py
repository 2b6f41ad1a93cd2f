import pytest

from ev_platform_tests.registry.registered import PlainStore


@pytest.fixture
def store(tmp_path):
    return PlainStore(tmp_path / "data")
