"""Every test is marked with the folder it lies in: unit, contract, integration, e2e or chaos.

With `-n`, files are handed to the workers whole, and those of a real engine to one worker only.
"""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
# What takes longest goes first, so that the workers end together.
ORDER = ("e2e", "chaos", "integration", "contract", "unit")

if find_spec("vllm") is None:  # make EXTRA=sim
    collect_ignore_glob = ["**/test_vllm_*.py", "**/test_demo.py"]


def folder(item: pytest.Item) -> str:
    """The folder of `tests` that the test lies in."""
    return item.path.relative_to(TESTS).parts[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(getattr(pytest.mark, folder(item)))
    if hasattr(config, "workerinput"):
        # A file of many tests has short ones. A worker is given its next file when it has two tests left: let them be
        # short, or that file waits while another worker has nothing to do.
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (ORDER.index(folder(item)), tests[item.path] if folder(item) == "e2e" else 0))


class ByFile(LoadScopeScheduling):
    """A file is one unit of work, and so is all of e2e: two real engines at once would each have half of the cores,
    and each other's load in their figures."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return "e2e" if path.startswith("tests/e2e/") else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # the order is ours, not that of how many tests a file has
    return ByFile(config, log)
