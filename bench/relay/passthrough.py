"""The least that a relay in Python can do: a call there for each call here, bytes as they come.

`python -m bench.relay.passthrough --port 9002 --to 127.0.0.1:9000 [--http2 stoker]`
"""

import argparse
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import uvloop

from stoker_common import channels, servers, wire
from stoker_common.channel import Http2

_SERVICE = "stoker.v1.InferenceService"


async def serve(port: int, to: str, http2: Http2) -> None:
    """Until killed."""
    channel = channels.channel(http2, to)
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_SERVICE}/Generate")
    stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{_SERVICE}/GenerateStream")

    async def generate(data: bytes, context: wire.Context) -> bytes:
        return await unary(data)

    async def generate_stream(data: bytes, context: wire.Context) -> None:
        call = stream(data)
        try:
            parts: AsyncIterator[bytes] = call.__aiter__()
            async for part in parts:
                await context.write(part)
        finally:
            call.cancel()

    server = servers.server(http2)
    handlers: dict[str, wire.Handler] = {
        "Generate": grpc.unary_unary_rpc_method_handler(generate),
        "GenerateStream": grpc.unary_stream_rpc_method_handler(generate_stream),
    }
    server.add_generic_rpc_handlers((wire.service(_SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--http2", choices=["grpc", "stoker"], default="grpc", help="on both sides")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.to, arguments.http2))


if __name__ == "__main__":
    main()
