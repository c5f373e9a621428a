"""What is said on a link, at its served end: the first words, and how messages come. Pure."""

from collections.abc import Iterator

from stoker.v1 import worker_link_pb2
from stoker_common import wire
from stoker_common.link.versions import Versions
from stoker_common.refusal import invalid


def heard(data: bytes) -> Iterator[worker_link_pb2.AttachRequest]:
    """The messages that came as one. Raises Refusal (INVALID_ARGUMENT) for what is none."""
    request = wire.parse(worker_link_pb2.AttachRequest, data)
    yield request
    yield from request.more


def hear_hello(data: object, versions: Versions, who: str) -> tuple[worker_link_pb2.Hello, int]:
    """Who attaches, and the version to welcome it in, from what was read first. `who` is what this side calls itself.

    Raises Refusal (INVALID_ARGUMENT) where the first message is no Hello, or asks for a version not spoken here.
    """
    first = wire.parse(worker_link_pb2.AttachRequest, data if isinstance(data, bytes) else b"")
    if not first.HasField("hello"):
        raise invalid("hello", "is missing: the link's first message must be one")
    theirs = first.hello.link_version
    version = versions.answer(theirs)
    if version is None:
        raise invalid("hello.link_version", f"is {theirs}; this {who} speaks {versions}")
    return first.hello, version
