import pytest

from bench.routing.speeds import Speeds
from bench.routing.suite import Asked, Result, cells, run
from bench.routing.workloads import Setting


@pytest.fixture(scope="session")
def setting() -> Setting:
    """Made-up requests of three seconds."""
    return Setting(Speeds(), 1.0, seconds=3.0)


@pytest.fixture(scope="session")
def ran(setting: Setting) -> list[Result]:
    """Two workloads at 10 requests a second, all policies, one router and eight."""
    return [run(cell, setting) for name in ("sessions", "bursts") for cell in cells(name, Asked(), 10.0)]
