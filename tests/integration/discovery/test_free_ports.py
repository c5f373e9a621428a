"""Ports for processes that listen on them later."""

import socket

import pytest

from discovery.consul_agent import free_ports


def test_they_are_free_different_and_none_that_the_system_gives_out() -> None:
    ports = free_ports(200)
    assert len(set(ports)) == 200
    assert all(10_000 <= port < 20_000 for port in ports)
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", ports[0]))
        udp.bind(("127.0.0.1", ports[0]))
        rest = free_ports(500)
        assert ports[0] not in rest


def test_too_many_are_refused() -> None:
    with pytest.raises(OSError, match="no 626 ports are free among"):
        free_ports(626)
