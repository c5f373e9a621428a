"""Probes that speak no gRPC: h2load, nghttp and curl, and what they have to find."""

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from stoker.v1 import generation_pb2, inference_pb2

_PATH = "/stoker.v1.InferenceService/Generate"
_GRPC = ("content-type: application/grpc", "te: trailers")
Probe = Callable[[str, Path], Awaitable[str]]


def _body(folder: Path) -> Path:
    """A request for an answer of eight tokens, as it goes over the wire."""
    sampling = generation_pb2.Sampling(max_tokens=8, ignore_eos=True)
    generation = generation_pb2.Generation(model="sim-model", text="probe", sampling=sampling)
    message = inference_pb2.GenerateRequest(generation=generation).SerializeToString()
    path = folder / "request"
    path.write_bytes(b"\0" + len(message).to_bytes(4) + message)
    return path


async def _said(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return out.decode(errors="replace")


async def h2load(address: str, folder: Path) -> str:
    """3,000 calls on ten connections of a hundred streams: why it failed, or nothing."""
    fields = [each for field in _GRPC for each in ("-H", field)]
    said = await _said(
        *("h2load", "-n3000", "-c10", "-m100", f"-d{_body(folder)}", *fields, f"http://{address}{_PATH}")
    )
    good = "3000 done, 3000 succeeded, 0 failed, 0 errored" in said and "3000 2xx" in said
    return "" if good else said


async def nghttp(address: str, folder: Path) -> str:
    """Frames as nghttp2 reads them: headers, data, trailers with grpc-status 0, padding and small windows asked for."""
    fields = [f"-H{field}" for field in _GRPC]
    said = await _said(
        *("nghttp", "-v", "-n", "--padding=64", "-w10", "-W12", f"-d{_body(folder)}", *fields),
        f"http://{address}{_PATH}",
    )
    for wanted in (r":status: 200", r"content-type: application/grpc", r"grpc-status: 0", r"recv DATA frame"):
        if not re.search(wanted, said):
            return f"no {wanted} in {said}"
    return ""


async def curl(address: str, folder: Path) -> str:
    """What is HTTP and not gRPC gets a status of HTTP's; HTTP/1.1 is hung up on, or told that it is HTTP/2 here."""
    url = f"http://{address}{_PATH}"
    h2 = (
        "curl",
        "-sS",
        "--max-time",
        "5",
        "--http2-prior-knowledge",
        "-o",
        str(folder / "answer"),
        "-w",
        "%{http_code}",
    )
    if (said := await _said(*h2, url)) != "405":
        return f"GET: {said}"
    if (said := await _said(*h2, "-d", "{}", url)) != "415":
        return f"POST of a form: {said}"
    fields = [each for field in _GRPC for each in ("-H", field)]
    if (said := await _said(*h2, *fields, "--data-binary", f"@{_body(folder)}", url)) != "200":
        return f"a call: {said}"
    said = await _said("curl", "-sS", "--max-time", "5", "--http1.1", "-w", "%{http_code}", url)
    # 000 with an error of curl's: no answer of HTTP/1.1, at once, not after the five seconds.
    return "" if "curl: (" in said and "timed out" not in said else f"HTTP/1.1: {said}"


PROBES: dict[str, Probe] = {
    name: probe for name, probe in {"h2load": h2load, "nghttp": nghttp, "curl": curl}.items() if shutil.which(name)
}
