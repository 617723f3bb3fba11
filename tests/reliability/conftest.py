import pytest

from tests.fewer_devices import fewer_devices


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Runs in the test's process have one device."""
    with fewer_devices():
        yield
