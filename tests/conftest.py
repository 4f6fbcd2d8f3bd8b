"""What every room shares: where the real images are, and examples that are the same in every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.matrix import (  # noqa: F401 - hooks and fixtures
    figure,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_logreport,
    pytest_runtest_setup,
    pytest_sessionfinish,
    times,
)

# The same examples each time, however slow the machine: a change is judged by itself. For others than these:
# pytest --hypothesis-profile=default --hypothesis-seed=7
settings.register_profile(
    "steady", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks want one thread: more would wait for each other. Sums, too, depend on how many share them."""
    import torch  # most tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images for tests, beside the checkout; tests that need them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real test images are not beside this checkout (../shared/data)")
    return folder
