"""A WAN in a process: packets between two TUN devices, with delay, jitter, loss and partitions of either direction.

`python -m tests.chaos.wan FD_A FD_B CONTROL`: two open TUN devices and a JSON file (`Wan`), read again when it changes.
Kernels need no netem for it. Packets of one direction stay in order.
"""

import heapq
import itertools
import os
import random
import selectors
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

_CONTROL_EVERY_S = 0.05
_PACKET_BYTES = 65536
_BURST = 64


class Wan(BaseModel):
    """The state of the line. Loss 1 in both directions is a partition, in one of them a one-way partition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_ms: float = Field(default=10.0, ge=0, description="one way")
    jitter_ms: float = Field(default=1.0, ge=0)
    loss_ab: float = Field(default=0.0, ge=0, le=1)
    loss_ba: float = Field(default=0.0, ge=0, le=1)


def write(control: Path, wan: Wan) -> None:
    """Put `wan` in force. Renamed into place, so that nobody reads half of it."""
    fresh = control.with_suffix(".new")
    fresh.write_text(wan.model_dump_json())
    fresh.replace(control)


def run(a: int, b: int, control: Path) -> None:
    """Carry packets until killed."""
    other = {a: b, b: a}
    last_s = {a: 0.0, b: 0.0}
    wan, seen, look_at_s = Wan(), 0, 0.0
    order = itertools.count()
    flying: list[tuple[float, int, int, bytes]] = []
    rng = random.Random()
    with selectors.DefaultSelector() as ready:
        for device in (a, b):
            ready.register(device, selectors.EVENT_READ)
        while True:
            now_s = time.monotonic()
            if now_s >= look_at_s:
                look_at_s = now_s + _CONTROL_EVERY_S
                if (changed := control.stat().st_mtime_ns) != seen:
                    seen, wan = changed, Wan.model_validate_json(control.read_bytes())
            until_s = min(look_at_s, flying[0][0] if flying else look_at_s)
            for key, _ in ready.select(max(0.0, until_s - now_s)):
                device = int(key.fd)
                loss = wan.loss_ab if device == a else wan.loss_ba
                for packet in _burst(device):
                    if rng.random() < loss:
                        continue
                    lands_s = time.monotonic() + max(0.0, wan.delay_ms + rng.uniform(-1, 1) * wan.jitter_ms) / 1e3
                    last_s[device] = lands_s = max(lands_s, last_s[device])
                    heapq.heappush(flying, (lands_s, next(order), other[device], packet))
            now_s = time.monotonic()
            while flying and flying[0][0] <= now_s:
                _, _, device, packet = heapq.heappop(flying)
                _send(device, packet)


def _burst(device: int) -> list[bytes]:
    """What waits in a device, at most so much that the other's packets are not late."""
    packets: list[bytes] = []
    while len(packets) < _BURST:
        try:
            packets.append(os.read(device, _PACKET_BYTES))
        except BlockingIOError:
            break
    return packets


def _send(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError:
        return  # a full or closed device loses packets, as lines do


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
