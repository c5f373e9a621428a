"""Stands between a zone's router (or others) and its Consul, and lies on demand.

`python -m tests.chaos.consul_proxy HOST PORT TARGET MODE`: MODE is a file with one word, `pass`, `empty` (every list is
`[]`), `error` (500), `limited` (429), `denied` (403, as for a token that was revoked), `hang` (no answer) or `reset`
(the index starts over).
"""

import asyncio
import sys
from pathlib import Path

import aiohttp
from aiohttp import web

MODES = ("pass", "empty", "error", "limited", "denied", "hang", "reset")
# As Consul words them.
_REFUSALS = {
    "error": (500, "No cluster leader"),
    "limited": (429, "Your IP is issuing too many concurrent connections"),
    "denied": (403, "ACL not found"),
}
_LOOK_EVERY_S = 0.05


class Proxy:
    """Passes requests on while the mode is `pass`. A change of mode ends blocking queries that are under way."""

    def __init__(self, target: str, mode_file: Path) -> None:
        self._target = target
        self._mode_file = mode_file
        self._mode = "pass"
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Keep the mode as the file says."""
        while True:
            mode = self._mode_file.read_text().strip() if self._mode_file.exists() else "pass"
            if mode in MODES and mode != self._mode:
                self._mode = mode
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        async with asyncio.timeout(1200):
            while True:
                if self._mode in _REFUSALS:
                    status, text = _REFUSALS[self._mode]
                    return web.Response(status=status, text=text)
                if self._mode == "empty":
                    return _empty(index=str(int(request.query.get("index", "1")) + 1))
                changed = self._changed
                if self._mode == "hang":
                    await changed.wait()
                    continue
                passing = asyncio.ensure_future(self._pass_on(request))
                waiting = asyncio.ensure_future(changed.wait())
                try:
                    await asyncio.wait((passing, waiting), return_when=asyncio.FIRST_COMPLETED)
                    if passing.done():
                        return passing.result()
                finally:
                    passing.cancel()
                    waiting.cancel()

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {
            key: value for key, value in request.headers.items() if key.lower() not in ("host", "content-length")
        }
        session: aiohttp.ClientSession = request.app["session"]
        try:
            async with session.request(
                request.method, f"http://{self._target}{request.raw_path}", data=body, headers=headers
            ) as response:
                kept = {key: value for key, value in response.headers.items() if key.startswith("X-Consul-")}
                if self._mode == "reset":
                    kept["X-Consul-Index"] = "1"
                return web.Response(
                    status=response.status,
                    body=await response.read(),
                    headers=kept | {"Content-Type": response.headers.get("Content-Type", "application/json")},
                )
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=str(error))


def _empty(index: str) -> web.Response:
    headers = {"X-Consul-Index": index, "X-Consul-Knownleader": "true", "X-Consul-Lastcontact": "0"}
    return web.Response(text="[]", headers=headers | {"Content-Type": "application/json"})


async def main(host: str, port: int, target: str, mode_file: Path) -> None:
    """Serve until killed."""
    proxy = Proxy(target, mode_file)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", proxy.answer)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        app["session"] = session
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        await proxy.follow()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
