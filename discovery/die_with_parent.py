"""A script: `python -I -S die_with_parent.py PARENT_PID COMMAND...` becomes COMMAND, killed when its parent dies.

A launcher and no `preexec_fn`: that runs Python between fork and exec, which is unsafe once grpc has threads. Where
there is no parent-death signal (not Linux) the command runs without.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Arm the signal, then become the command. The signal outlives exec (prctl(2))."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # It may have died before the signal was armed.
        if os.getppid() != parent:
            raise SystemExit(f"die_with_parent: parent {parent} is gone; not starting {command[0]}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
