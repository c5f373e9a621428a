"""What one client may ask of the server, and all together: sizes, rates and times, each with its reason. And what a
client lets a server do."""

from dataclasses import dataclass

from stoker_common.channel import (
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    METADATA_HARD_BYTES,
    PING_TIMEOUT_MS,
    SERVER_PING_INTERVAL_MS,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection, where nothing else is said."""

    # Connections of a server; further ones are closed at once. One that only waits costs 23 KiB: 230 MiB.
    connections: int = 10_000

    # Streams at once, those counted whose handler still runs after the client has cancelled (CVE-2023-44487). Beyond it
    # a well-behaved client waits silently (gRPC A105), so admission is the services' affair: this is the last resort.
    streams: int = 16_384
    # A request's message, decompressed as well as compressed, and an answer's.
    request_bytes: int = MAX_REQUEST_BYTES
    response_bytes: int = MAX_RESPONSE_BYTES
    # Messages that have come in and not been read yet, of all streams together: four of the largest.
    unread_bytes: int = 4 * MAX_REQUEST_BYTES
    # Of all connections of a server: what eight have that take all they may, and an eighth of a router of 4 GiB.
    server_unread_bytes: int = 512 << 20
    # Answers that their client has not taken: two of the largest, or 8 KiB of each stream.
    unsent_bytes: int = 2 * MAX_RESPONSE_BYTES
    # Of all connections of a server, with what full sockets hold up.
    server_unsent_bytes: int = 512 << 20
    # A header list as RFC 9113 counts it, 32 bytes more a field. One above it is refused.
    metadata_bytes: int = METADATA_HARD_BYTES
    # Of all calls that a connection has: one byte in a header block can stand for a field of four thousand, and Python
    # keeps some five times what is counted here. 2 KiB a call, were there as many as may be.
    all_metadata_bytes: int = 32 << 20
    # Of all connections of a server: 128,000 calls of 1 KiB, and 640 MiB as Python keeps it.
    server_metadata_bytes: int = 128 << 20
    # Of one above these the decoder's state is not kept, so the connection ends. They leave room to refuse politely
    # what is a mistake, and bound what a bomb of references or an endless block (CVE-2024-27316) can make of us.
    header_block_bytes: int = 64 << 10
    header_list_bytes: int = 64 << 10
    header_frames: int = 16
    # What a client may send before we read it. The whole connection's window is a multiple, so that one stream whose
    # handler does not read leaves the others theirs. Updates go out at half.
    stream_window_bytes: int = 1 << 20
    connection_window_bytes: int = 4 << 20
    # What waits of one stream, in bytes, when its handler's next write waits, too.
    backlog_bytes: int = 32 << 10
    # Output that may be joined goes out in one message at most so often a stream: its client pays for messages, and
    # nobody reads 250 a second. Streams of up to so many tokens a second are sent each token as it comes.
    message_s: float = 0.004
    # What is written of a connection in one go. Others' turns come in between.
    turn_bytes: int = 256 << 10
    # Answers to PINGs, resets and the like for a client that does not read them.
    control_bytes: int = 1 << 20
    # Frames that cost us work and carry nothing (PING, WINDOW_UPDATE, PRIORITY, empty DATA; SETTINGS weigh a hundred):
    # so many at once, so many a second. At some 3 us each that is 30 ms, and 0.3 % of a core. A frame of data that we
    # send earns four, for the updates that it asks for.
    control_burst: int = 10_000
    control_per_s: float = 1_000.0
    # Streams that are reset before they were answered: so many at once, so many a second. At some 100 us each that is
    # half a second, and 5 % of a core. A client that gives up all that waits for an overloaded mesh stays below.
    resets_burst: int = 5_000
    resets_per_s: float = 500.0
    # Messages may be compressed. One that becomes more than 128 KiB is unpacked by a thread, one for all; False refuses
    # all that is compressed.
    compressed: bool = True
    # The preface and the first SETTINGS have to be there by then; a client is asked nothing before it has begun.
    handshake_s: float = 10.0
    # A client that was silent so long is asked whether it is there, and is gone if it does not answer.
    ping_interval_s: float = SERVER_PING_INTERVAL_MS / 1e3
    ping_timeout_s: float = PING_TIMEOUT_MS / 1e3
    # An answer whose handler has ended, and of which the client takes nothing, is kept so long; so is what a connection
    # that was closed still had to say.
    linger_s: float = 60.0
    # How long a client that was told of the end may go on opening streams: as long as the word may take.
    goaway_s: float = 1.0
    # Whether a connection without streams is asked, too.
    pings_idle: bool = True
    # What a client's connection may take until its server has said what it takes.
    connect_s: float = 2.0


def client_limits(*, ping_when_idle: bool = False) -> Limits:
    """Of a client's connection. `ping_when_idle`: see `client_options`.

    A server that froze is noticed within 2 to 2.5 s: what fails over has 3 s for it. The answer to a PING has less time
    than gRPC's has, and the server's loop, which gives it here, has to be late by 1.5 s to be taken for dead.
    """
    return Limits(ping_interval_s=0.5, ping_timeout_s=1.5, pings_idle=ping_when_idle)
