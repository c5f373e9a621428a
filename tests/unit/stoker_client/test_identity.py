"""A pid with its start time: signals reach that process or none."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from stoker_client.mesh import identity

pytestmark = pytest.mark.unit


def test_this_process() -> None:
    myself = identity.me()
    assert myself.pid == os.getpid()
    assert identity.alive(myself)


def test_a_process_with_the_same_pid_is_another_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = identity.identify(child.pid)
        assert found is not None
        for foreign in (replace(found, started_ticks=found.started_ticks - 1), replace(found, boot="another")):
            assert not identity.alive(foreign)
            assert not identity.send(foreign, signal.SIGKILL)
        assert child.poll() is None
        assert identity.send(found, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not identity.alive(found)
        assert not identity.send(found, signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()


def test_what_is_left_of_a_process_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.identify(child.pid) is None
    child.wait()
