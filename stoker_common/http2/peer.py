"""What the other end says of itself: its settings, and where it is."""

import struct

from stoker_common.http2.faults import ConnectionFault, protocol_error
from stoker_common.http2.frames import (
    FIRST_FRAME_BYTES,
    FIRST_TABLE_BYTES,
    FIRST_WINDOW_BYTES,
    LARGEST_FRAME_BYTES,
    LARGEST_STREAM_ID,
    LARGEST_WINDOW_BYTES,
    ErrorCode,
    Setting,
)

_SETTING = struct.Struct(">HL")


class PeerSettings:
    """What it takes. Ours are not told it again."""

    def __init__(self) -> None:
        # Of a stream, at first.
        self.window = FIRST_WINDOW_BYTES
        self.frame_bytes = FIRST_FRAME_BYTES
        # Streams at once that it takes of ours, and bytes of the table that our header blocks may refer to.
        self.streams = LARGEST_STREAM_ID
        self.table_bytes = FIRST_TABLE_BYTES

    def take(self, payload: bytes) -> int:
        """SETTINGS came. By how much every stream's window grows, or shrinks. Raises ConnectionFault."""
        if len(payload) % _SETTING.size:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS have six bytes each")
        before = self.window
        for key, value in _SETTING.iter_unpack(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW_BYTES:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window cannot be as large")
                self.window = value
            elif key == Setting.MAX_FRAME_SIZE:
                if not FIRST_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
                    raise protocol_error("no frame can have that size")
                self.frame_bytes = value
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self.streams = value
            elif key == Setting.HEADER_TABLE_SIZE:
                self.table_bytes = value
            elif key == Setting.ENABLE_PUSH and value > 1:
                raise protocol_error("pushing is on or off")
        return self.window - before


def peer_name(address: object) -> str:
    """A socket's address as gRPC writes it: `ipv4:127.0.0.1:50051`, `ipv6:[::1]:50051`."""
    if isinstance(address, tuple) and len(address) == 2:
        return f"ipv4:{address[0]}:{address[1]}"
    if isinstance(address, tuple) and len(address) == 4:
        return f"ipv6:[{address[0]}]:{address[1]}"
    return f"unix:{address}" if isinstance(address, str) and address else "unknown"
