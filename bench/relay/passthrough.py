"""The least that a relay in grpc.aio can do: a call there for each call here, bytes as they come.

`python -m bench.relay.passthrough --port 9002 --to 127.0.0.1:9000`
"""

import argparse
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import uvloop

from stoker_common import wire
from stoker_common.channel import client_options, server_options

_SERVICE = "stoker.v1.InferenceService"


async def serve(port: int, to: str) -> None:
    """Until killed."""
    channel = grpc.aio.insecure_channel(to, options=client_options())
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

    server = grpc.aio.server(options=server_options())
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
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.to))


if __name__ == "__main__":
    main()
