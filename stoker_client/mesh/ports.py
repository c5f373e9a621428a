"""The ports of a local mesh, and whether they are free."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass


class PortTaken(Exception):
    """A port that a part of the mesh needs belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port and who needs it. Consul's gossip needs it for UDP too."""

    number: int
    owner: str
    udp: bool = False


def check_free(ports: Iterable[Port], host: str = "127.0.0.1") -> None:
    """Raises PortTaken, naming the port, its would-be owner and what to do, for the first that is taken."""
    for port in ports:
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM) if port.udp else (socket.SOCK_STREAM,)
        for kind in kinds:
            if not _free(kind, host, port.number):
                raise PortTaken(
                    f"port {port.number}, which {port.owner} needs, is taken: free it "
                    f"(`ss -lptun 'sport = :{port.number}'` says who has it) or choose others with --port-base"
                )


def _free(kind: socket.SocketKind, host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:
            # As servers do: a port whose last connections still linger (TIME_WAIT) is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
