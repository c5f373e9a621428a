"""The process that a soak looks into: a router and a server with HTTP/2 of our own. `python -m tests.interop.soak_mesh
PORT`; answers each line on stdin by one line of JSON, its figures, and ends with stdin."""

import asyncio
import gc
import json
import sys

import psutil
import uvloop

from tests.interop.mesh import Served, served


def figures(there: Served) -> dict[str, float]:
    """What has to stay where it is."""
    process = psutil.Process()
    read = there.registry.get_sample_value
    return {
        "rss_mib": round(process.memory_info().rss / 2**20, 1),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": len(asyncio.all_tasks()),
        "connections": read("stoker_http2_connections") or 0.0,
        "streams": read("stoker_http2_streams") or 0.0,
        "held_bytes": sum(
            read("stoker_http2_held_bytes", {"limit": limit}) or 0.0 for limit in ("unread", "unsent", "metadata")
        ),
        "faults": sum(
            read("stoker_http2_faults_total", {"code": code}) or 0.0
            for code in ("PROTOCOL_ERROR", "ENHANCE_YOUR_CALM", "FLOW_CONTROL_ERROR", "FRAME_SIZE_ERROR")
        ),
        "idle": float(there.idle()),
    }


async def main(port: int) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with served("stoker") as there:
        there.port = port
        async with asyncio.TaskGroup() as tasks:
            started = asyncio.Event()
            tasks.create_task(there.live(started))
            await started.wait()
            while await reader.readline():
                gc.collect()
                sys.stdout.write(json.dumps(figures(there)) + "\n")
                sys.stdout.flush()
            there.leave()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
