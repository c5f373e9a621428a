"""What a peer did that HTTP/2 forbids, or that is more than we take: one stream ends of it, or the connection."""

from stoker_common.http2.frames import ErrorCode


class ConnectionFault(Exception):
    """The connection ends, with all of its streams."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class StreamFault(Exception):
    """One stream ends; the others go on."""

    def __init__(self, stream_id: int, code: ErrorCode, why: str) -> None:
        super().__init__(why)
        self.stream_id = stream_id
        self.code = code
        self.why = why


def protocol_error(why: str) -> ConnectionFault:
    """The peer broke a rule of RFC 9113."""
    return ConnectionFault(ErrorCode.PROTOCOL_ERROR, why)


def too_much(why: str) -> ConnectionFault:
    """The peer asks for more work than a good one would (RFC 9113, section 10.5)."""
    return ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, why)
