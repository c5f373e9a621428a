"""py-consul's async client over an HTTP client of our own: headers kept, stale reads, timeouts that fit the wait.

py-consul's own transport drops the headers that say how far to believe an answer, ignores `consistency` for health
queries, and times out before a long wait is over (docs/adr/0010).
"""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import consul.aio
from consul import base

from discovery.errors import CatalogError

# A local agent answers in milliseconds; a query for another datacenter that cannot be reached hangs past 30 s.
CALL_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0
# On top of wait + wait/16, by which Consul spreads the ends of long waits.
_WAIT_SLACK_S = 2.0
# A thousand records of 64 full Meta values are 33 MB; an answer beyond that is a fault, and must not fill our memory.
_MAX_BODY_BYTES = 64 << 20
_STALE_PATHS = ("/v1/health/", "/v1/catalog/")
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with an index: what py-consul's callback made of it, and the headers."""

    index: int
    data: object
    known_leader: bool
    last_contact_ms: int


def timeout_s(params: dict[str, object]) -> float:
    """How long a query may take: wait x 17/16 + 2 s if it blocks, CALL_TIMEOUT_S if it does not."""
    if "index" not in params:
        return CALL_TIMEOUT_S
    return duration_s(str(params.get("wait", "5m"))) * 17 / 16 + _WAIT_SLACK_S


def duration_s(go: str) -> float:
    """Seconds of a Go duration such as `1m30s`."""
    return sum(float(number) * _UNIT_S[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", go))


class HttpClient(base.HTTPClient):
    """The transport that py-consul's endpoints call. Belongs to the event loop that first uses it."""

    def __init__(self, host: str, port: int, scheme: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port, scheme)
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def _send(
        self,
        callback: Callable[[base.Response], Any],
        method: str,
        path: str,
        params: list[tuple[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        data: str | bytes | None = None,
    ) -> Any:
        params = list(params or ())
        if method == "GET" and path.startswith(_STALE_PATHS):
            params.append(("stale", "1"))
        if self._session is None:
            # No limit: each zone's blocking query holds a connection, and a pass must not wait for one.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        timeout = aiohttp.ClientTimeout(total=timeout_s(dict(params)), sock_connect=_CONNECT_TIMEOUT_S)
        uri = self.uri(path, params)
        async with self._session.request(
            method, uri, headers=headers, data=data, timeout=timeout, ssl=self._tls or True
        ) as response:
            body = await _read_body(response)
            reply = base.Response(response.status, response.headers, body.decode("utf-8", "replace"))
        # No key under a prefix is an answer, too, with an index to wait on.
        if reply.code >= 400 and not (reply.code == 404 and path.startswith("/v1/kv/")):
            raise _status_error(method, path, reply.code, reply.body)
        result = callback(reply)
        if not (isinstance(result, tuple) and len(result) == 2):
            return result
        return Reply(
            index=_number(result[0]),
            data=result[1],
            known_leader=reply.headers.get("X-Consul-KnownLeader") == "true",
            last_contact_ms=_number(reply.headers.get("X-Consul-LastContact", "0")),
        )

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        """An awaitable GET."""
        return self._send(callback, "GET", path, params, headers)

    def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any) -> Any:
        """An awaitable PUT."""
        return self._send(callback, "PUT", path, params, headers, data)

    def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any) -> Any:
        """An awaitable POST."""
        return self._send(callback, "POST", path, params, headers, data)

    def delete(
        self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any
    ) -> Any:
        """An awaitable DELETE."""
        return self._send(callback, "DELETE", path, params, headers, data)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Consul(consul.aio.Consul):
    """py-consul's async client over HttpClient."""

    def __init__(self, host: str, port: int, scheme: str, token: str | None, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        super().__init__(host=host, port=port, scheme=scheme, verify=True)
        # Set afterwards: py-consul lets $CONSUL_HTTP_TOKEN beat the token that it is given.
        self.token = token

    def http_connect(self, host: str, port: int, scheme: str, verify: Any = True, cert: Any = None) -> HttpClient:
        """The transport (called by py-consul)."""
        return HttpClient(host, port, scheme, self._tls)


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _MAX_BODY_BYTES:
            raise CatalogError("BAD_ANSWER", f"Consul's answer is over {_MAX_BODY_BYTES} bytes", status=response.status)
    return b"".join(parts)


def _status_error(method: str, path: str, status: int, body: str) -> CatalogError:
    reason = {401: "DENIED", 403: "DENIED", 404: "NOT_FOUND", 429: "OVERLOADED"}.get(status)
    if reason is None:
        reason = "SERVER_ERROR" if status >= 500 else "REJECTED"
    said = " ".join(body[:200].split())
    return CatalogError(
        reason, f"{method} {path}: Consul answered {status}: {said}", status=status, retryable=reason != "REJECTED"
    )


def _number(text: object) -> int:
    try:
        return int(str(text))
    except ValueError as error:
        raise CatalogError("BAD_ANSWER", f"{str(text)[:40]!r} in a header of Consul's is no number") from error
