"""What is on this machine of other people's HTTP/2: their clients as commands, their proxies as configurations."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_PROTOS = ("inference", "generation", "endpoint", "pick")
_GO = Path("/usr/share/gocode")
_KNOWN = "github.com/golang/protobuf/ptypes"


def python_client(kind: str) -> list[str]:
    """grpc's C core."""
    return [sys.executable, "-m", "tests.interop.clients.python", "ADDRESS", kind]


def js_client(modules: Path) -> tuple[list[str], dict[str, str]] | None:
    """grpc-js, and its environment; None where node or the packages are missing."""
    if not shutil.which("node") or not (modules / "@grpc" / "grpc-js").exists():
        return None
    command = ["node", str(_HERE / "clients" / "client.js"), "ADDRESS", str(_ROOT / "protos")]
    return command, {"NODE_PATH": str(modules)}


def go_client(folder: Path) -> list[str] | None:
    """grpc-go as Debian has it, built into `folder`; None where Go, grpc-go or the plugin is missing."""
    plugin = shutil.which("protoc-gen-go")
    if not shutil.which("go") or plugin is None or not (_GO / "src/google.golang.org/grpc").exists():
        return None
    protos, out = folder / "protos", folder / "go"
    for name in _PROTOS:
        target = protos / "stoker" / "v1" / f"{name}.proto"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (_ROOT / "protos" / "stoker" / "v1" / f"{name}.proto").read_text()
        # Debian's plugin is older than `optional`, which changes nothing on the wire.
        target.write_text(text.replace("  optional ", "  "))
    (out / "src").mkdir(parents=True, exist_ok=True)
    known = ",".join(f"Mgoogle/protobuf/{each}.proto={_KNOWN}/{each}" for each in ("duration", "timestamp"))
    generate = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(protos), f"--plugin=protoc-gen-go={plugin}"]
    generate += [f"--go_out=plugins=grpc,{known}:{out / 'src'}", *(f"stoker/v1/{name}.proto" for name in _PROTOS)]
    subprocess.run(generate, check=True, stderr=subprocess.DEVNULL)
    made = folder / "client-go"
    where = {"GO111MODULE": "off", "GOPATH": f"{out}:{_GO}"}
    build = ["go", "build", "-o", str(made), str(_HERE / "clients" / "go" / "main.go")]
    subprocess.run(build, check=True, env={"GOCACHE": str(folder / "go-cache"), **os.environ, **where})
    return [str(made), "ADDRESS"]


def nginx(folder: Path, port: int, upstream: str) -> list[str] | None:
    """nginx as an L7 proxy: grpc_pass, a connection upstream kept."""
    if not shutil.which("nginx"):
        return None
    conf = folder / "nginx.conf"
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(f"""
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; {paths}
  client_max_body_size 0; http2_max_concurrent_streams 1000; http2_max_field_size 64k; http2_max_header_size 128k;
  large_client_header_buffers 8 64k;
  grpc_buffer_size 64k; keepalive_requests 100000;
  upstream router {{ server {upstream}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{ grpc_pass grpc://router; grpc_read_timeout 60s; }}
  }}
}}
""")
    return ["nginx", "-p", str(folder), "-c", str(conf)]


def haproxy(folder: Path, port: int, upstream: str) -> list[str] | None:
    """haproxy as an h2 proxy: HTTP/2 on both sides, connections upstream shared."""
    if not shutil.which("haproxy"):
        return None
    conf = folder / "haproxy.cfg"
    conf.write_text(f"""
global
  maxconn 4000
  tune.h2.max-concurrent-streams 1000
  tune.bufsize 65536
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend clients
  bind 127.0.0.1:{port} proto h2
  default_backend router
backend router
  http-reuse always
  server one {upstream} proto h2
""")
    return ["haproxy", "-f", str(conf), "-db"]


@asynccontextmanager
async def running(command: list[str], log: Path) -> AsyncIterator[None]:
    """A process beside the block."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out)
        try:
            yield
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
