"""Ties vLLM's processes to the server that started them: they die with it, and take signals from nobody else.

A `vllm.general_plugins` entry point: vLLM calls `register` early in its engine core and in each worker. Without it, a
server killed by SIGKILL leaves an engine behind that keeps the GPU's memory for good.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Tie this process to its parent. Does nothing in the server itself, which no `multiprocessing` started."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    _leave_process_group()
    if sys.platform == "linux":
        _die_with(parent)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent-death", daemon=True).start()


def _leave_process_group() -> None:
    """Take this process out of its parent's group.

    A Ctrl-C, or a signal to the group, would reach the engine too. It then ends its streams with "abort" while the
    server still drains them. The server alone decides when its engine ends.
    """
    if os.getpid() != os.getpgrp():
        os.setpgrp()


def _die_with(parent: BaseProcess) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    The thread, not the process: whoever starts the engine must do so from a thread that lives as long as the engine.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    if os.getppid() != parent.pid:  # It died before the kernel was asked.
        os._exit(1)


def _watch(parent: BaseProcess) -> None:
    """Where the kernel has no such signal: wait for the parent's end of a pipe to close."""
    wait([parent.sentinel])
    os._exit(1)
