"""A mock model server for HTTP: `python -m bench.relay.backend_http --port 9001`. Completions as OpenAI streams them.

On bare asyncio protocols: a web framework would cost more for a token than what is measured. Speaks as much HTTP/1.1 as
the routers in front of it need: their health checks and questions for models are answered, requests may be pipelined.
"""

import argparse
import asyncio
import json
from typing import cast

import uvloop

from bench.relay.backend_grpc import Steps
from bench.relay.script import MODEL, ONCE_TOKENS, PACED, UNPACED, stamp

_SAMPLING = {"object": "text_completion", "created": 1, "model": MODEL}


def _event(finished: bool) -> bytes:
    choice = {"index": 0, "text": stamp(), "logprobs": None, "finish_reason": "length" if finished else None}
    return b"data: " + json.dumps({"id": "cmpl-1", **_SAMPLING, "choices": [choice]}).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _response(body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._buffer = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none, but do the same

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio. The streams go with it."""
        for task in self._tasks:
            task.cancel()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1")
            length = 0
            for line in head.split("\r\n")[1:]:
                name, _, value = line.partition(":")
                if name.lower() == "content-length":
                    length = int(value)
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(head.split(" ", 2)[1], body)

    def _answer(self, path: str, body: bytes) -> None:
        if path.startswith("/v1/completions"):
            request = json.loads(body)
            how = request["prompt"].split(" ", 1)[0]
            if request.get("stream"):
                task = asyncio.ensure_future(self._stream(how, request["max_tokens"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                text = "".join(stamp() for _ in range(ONCE_TOKENS))
                usage = {"prompt_tokens": 8, "completion_tokens": ONCE_TOKENS, "total_tokens": 8 + ONCE_TOKENS}
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}
                answer = {"id": "cmpl-1", **_SAMPLING, "choices": [choice], "usage": usage}
                self._transport.write(_response(json.dumps(answer).encode()))
        elif path.startswith("/v1/models"):
            models = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}
            self._transport.write(_response(json.dumps(models).encode()))
        else:
            # Health, server information, loads: well, and nothing to tell.
            self._transport.write(_response(json.dumps({"status": "ok", "model_path": MODEL}).encode()))

    async def _stream(self, how: str, tokens: int) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for i in range(1, tokens + 1):
            if how == PACED:
                await self._steps.next()
            elif how == UNPACED:
                await asyncio.sleep(0)  # a token of each stream in turn, as in the mock for gRPC
            await self._writable.wait()
            self._transport.write(_chunk(_event(i == tokens)))
        self._transport.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve(port: int) -> None:
    """Until killed."""
    steps = Steps()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(steps), "127.0.0.1", port, backlog=1024)
    async with server:
        await steps.run()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
