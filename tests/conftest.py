"""Every test is marked with the folder it lies in: unit, contract, integration, e2e or chaos."""

from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

if find_spec("vllm") is None:  # make EXTRA=sim
    collect_ignore_glob = ["**/test_vllm_*.py", "**/test_demo.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(getattr(pytest.mark, folder))
