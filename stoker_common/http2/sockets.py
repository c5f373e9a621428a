"""Sockets to listen on, from an address as gRPC writes it."""

import errno
import socket

BACKLOG = 1024


def listen(address: str, *, share_port: bool) -> list[socket.socket]:
    """Sockets that listen at `host:port`, one for each of the host's addresses; port 0 is any free one, for all the
    same. Raises OSError.

    `share_port` lets other processes listen there, too, and each gets its share of the connections.
    """
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, kind, protocol, _, at in dict.fromkeys(found):
        where: tuple[str | int | bytes, ...] = at
        if sockets and not where[1]:
            where = (where[0], sockets[0].getsockname()[1], *where[2:])
        try:
            sockets.append(_listening(family, kind, protocol, where, share_port=share_port))
        except OSError as error:
            # An address of a family that this machine has not is no loss while another listens.
            if error.errno == errno.EADDRINUSE:
                close(sockets)
                raise
            failure = error
    if not sockets:
        raise failure or OSError(f"{address} is no address to listen on")
    return sockets


def close(sockets: list[socket.socket]) -> None:
    """Let go of their ports."""
    for each in sockets:
        each.close()


def _listening(
    family: int, kind: int, protocol: int, where: tuple[str | int | bytes, ...], *, share_port: bool
) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        # A server that restarts finds its port free though old connections of it linger.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # [::] is IPv4's wildcard as well, as with gRPC.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(where[0] != "::"))
        made.bind(where)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
