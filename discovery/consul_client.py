"""A Consul agent as discovery sees it, typed; every failure is a CatalogError."""

import os
import ssl
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
from consul import ConsulException

from discovery.agent_api import Answer, TtlCheck
from discovery.codec import ServiceRecord
from discovery.consul_address import split
from discovery.consul_http import Consul, Reply
from discovery.errors import CatalogError
from discovery.pins import Keys


class ConsulClient:
    """Implements AgentApi over HTTP. Close it, or use it with `async with`.

    `address` is `host:port` or a URL; `token` defaults to $CONSUL_HTTP_TOKEN and is never logged; `ca_file`, for https,
    is a PEM file of the authorities to trust instead of the system's.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8500",
        token: str | None = None,
        ca_file: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        host, port, scheme = split(address)
        tls = ssl.create_default_context(cafile=ca_file) if scheme == "https" else None
        self.address = f"{scheme}://{host}:{port}"
        self._consul = Consul(host, port, scheme, token or environ.get("CONSUL_HTTP_TOKEN"), tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._consul.http.close()

    async def services(self, service: str, zone: str, index: int, wait_s: float) -> Answer:
        """See AgentApi."""
        wait = {"index": index, "wait": f"{wait_s:g}s"} if index else {}
        reply = await self._call(self._consul.health.service(service, dc=zone, **wait))
        if not isinstance(reply, Reply):
            raise CatalogError("BAD_ANSWER", "Consul's answer has no index")
        return Answer(reply.index, reply.data, reply.known_leader, reply.last_contact_ms)

    async def zones(self) -> Sequence[str]:
        """See AgentApi."""
        found = await self._call(self._consul.catalog.datacenters())
        if not isinstance(found, list) or not all(isinstance(zone, str) and zone for zone in found):
            raise CatalogError("BAD_ANSWER", "Consul's list of datacenters is not a list of names")
        return tuple(found)

    async def keys(self, prefix: str, zone: str, index: int, wait_s: float) -> Keys:
        """See KeysApi."""
        wait = {"index": index, "wait": f"{wait_s:g}s"} if index else {}
        reply = await self._call(self._consul.kv.get(prefix, keys=True, dc=zone or None, **wait))
        if not isinstance(reply, Reply):
            raise CatalogError("BAD_ANSWER", "Consul's answer has no index")
        found = reply.data or []
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise CatalogError("BAD_ANSWER", "Consul's list of keys is not a list of names")
        return Keys(reply.index, found, reply.known_leader)

    async def register(self, service: str, record: ServiceRecord, check: TtlCheck, *, replace_checks: bool) -> None:
        """See AgentApi."""
        await self._call(
            self._consul.agent.service.register(
                service,
                service_id=record.service_id,
                address=record.address,
                port=record.port,
                tags=list(record.tags),
                meta=dict(record.meta),
                check={
                    "CheckID": check_id(record.service_id),
                    "Name": "answers",
                    "TTL": f"{check.ttl_s:g}s",
                    "Status": "passing",
                    "DeregisterCriticalServiceAfter": f"{check.deregister_after_s:g}s",
                },
                replace_existing_checks=replace_checks,
            )
        )

    async def deregister(self, service_id: str) -> None:
        """See AgentApi."""
        try:
            await self._call(self._consul.agent.service.deregister(service_id))
        except CatalogError as error:
            # 1.8 answers 200 for a service that it does not know, later ones 404.
            if error.reason != "NOT_FOUND":
                raise

    async def mark(self, service_id: str, *, passing: bool, output: str) -> None:
        """See AgentApi."""
        check = self._consul.agent.check
        await self._call((check.ttl_pass if passing else check.ttl_fail)(check_id(service_id), notes=output))

    async def epoch(self, service_id: str) -> str | None:
        """See AgentApi."""
        try:
            found = await self._call(self._consul.agent.service_definition(service_id))
        except CatalogError as error:
            if error.reason == "NOT_FOUND":
                return None
            raise
        meta = found.get("Meta") if isinstance(found, dict) else None
        return str(meta.get("epoch", "")) if isinstance(meta, dict) else ""

    async def in_maintenance(self, service_id: str) -> bool:
        """See AgentApi."""
        checks = await self._call(self._consul.agent.checks())
        return isinstance(checks, dict) and maintenance_check_id(service_id) in checks

    async def _call(self, call: Awaitable[Any]) -> object:
        try:
            result: object = await call
        except TimeoutError as error:
            raise CatalogError("TIMEOUT", f"Consul at {self.address} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise CatalogError("UNREACHABLE", f"Consul at {self.address} cannot be reached: {error}") from error
        except (ConsulException, ValueError, RecursionError) as error:
            raise CatalogError("BAD_ANSWER", f"Consul at {self.address}: {str(error)[:200]}") from error
        return result


def check_id(service_id: str) -> str:
    """The one check of a service: always the same id, or the check left behind would deregister a healthy service."""
    return f"service:{service_id}"


def maintenance_check_id(service_id: str) -> str:
    """The check that `consul maint -enable -service=ID` adds."""
    return f"_service_maintenance:{service_id}"
