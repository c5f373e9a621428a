"""What a serving process tells the garbage collector. In a process of its own: it lasts."""

import subprocess
import sys


def test_what_is_there_is_left_alone_and_the_collector_comes_seldom() -> None:
    code = (
        "import gc; from stoker_common import memory; kept = [[] for _ in range(1000)]; memory.settle(); "
        "assert gc.get_freeze_count() >= 1000, gc.get_freeze_count(); assert gc.get_threshold()[0] >= 20_000; "
        "assert not [each for each in gc.get_objects() if each is kept]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
