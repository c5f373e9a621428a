"""Where a zone's processes live: a network namespace of its own, or, without root, loopback.

A namespace belongs to a thread here and to the processes that this thread starts: it has no name, so nothing of it
stays behind, and whatever the thread calls (a subprocess, an HTTP request) happens inside.
"""

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001

T = TypeVar("T")


def why_no_namespaces() -> str:
    """What is missing for network namespaces; empty if nothing is."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("ip") is None:
        return "no `ip` command (iproute2)"
    if not os.path.exists(_TUN):
        return f"no {_TUN}"
    return ""


class Place:
    """Loopback: every process has 127.0.0.1, and nothing between them can be cut."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="place")

    def host(self, number: int) -> str:
        """The address of the place's process `number`."""
        return "127.0.0.1"

    def run(self, work: Callable[[], T]) -> T:
        """Do it there."""
        return self._thread.submit(work).result()

    def drop(self, host: str, *, dropped: bool) -> None:
        """Lose every packet from and to an address of this place, or none any more. Namespaces only."""
        raise NotImplementedError("packets can be dropped in namespaces only")

    def close(self) -> None:
        """The thread ends, and with it the processes that it started (parent-death signal)."""
        self._thread.shutdown()


class Namespace(Place):
    """A network namespace. Zone 1's addresses are 10.88.1.N, zone 2's 10.88.2.N, and a line of TUN joins both."""

    def __init__(self, zone: int) -> None:
        super().__init__()
        self._zone = zone
        self.run(self._unshare)

    def host(self, number: int) -> str:
        """See `Place`."""
        return f"10.88.{self._zone}.{number + 1}"

    def add_host(self, number: int) -> None:
        """Make the address exist."""
        self._ip(f"addr add {self.host(number)}/32 dev lo")

    def open_line(self) -> int:
        """The near end of the line to the other zone: an open TUN device, whose file descriptor is the caller's."""
        return self.run(self._open_line)

    def drop(self, host: str, *, dropped: bool) -> None:
        """See `Place`. By routing: this needs no packet filter."""
        word = "add" if dropped else "del"
        for side in ("from", "to"):
            self._ip(f"rule {word} pref 5 {side} {host} blackhole")

    def _unshare(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        # Rules for single addresses come before the local table, which otherwise decides first.
        for line in ("link set lo up", "rule add pref 10 lookup local", "rule del pref 0"):
            subprocess.run(["ip", *line.split()], check=True)

    def _open_line(self) -> int:
        device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14s", b"wan0", _IFF_TUN_NO_PI, b""))
        mine, other = self._zone, 3 - self._zone
        for line in (
            f"addr add 10.88.0.{mine} peer 10.88.0.{other} dev wan0",
            "link set wan0 mtu 1400 txqueuelen 10000 up",
            f"route add 10.88.{other}.0/24 dev wan0 src {self.host(0)}",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        return device

    def _ip(self, line: str) -> None:
        self.run(lambda: subprocess.run(["ip", *line.split()], check=True))
