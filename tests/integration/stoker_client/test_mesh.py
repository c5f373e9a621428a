"""`stoker up` and all that works on it, as users run it: real Consul, routers and servers, simulated engine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discovery.consul_agent import find_consul
from stoker_client.mesh import identity, state
from stoker_client.mesh.config import MeshSettings
from stoker_client.mesh.plan import plan
from stoker_client.mesh.ports import PortTaken, check_free
from stoker_client.mesh.state import Kind, Phase

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[3]
# The promise is 10 s on an idle machine; tests share theirs.
UP_WITHIN_S = 60.0


def stoker(folder: Path, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in this mesh's folder."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
    environ |= {"STOKER_MESH_RUN_FOLDER": str(folder), "CONSUL_BIN": str(find_consul(ROOT))}
    environ |= {"STOKER_ROUTER_LOG_LEVEL": "debug", "STOKER_MODEL_SERVER_LOG_LEVEL": "debug"}
    ran = subprocess.run(
        [sys.executable, "-m", "stoker_client", *argv],
        env=environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    assert ran.returncode == code, f"{argv}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran


def free_base() -> int:
    """A block of ports that is free; below those that the system gives out, and none that another of pytest's workers
    would find free at the same moment."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for base in range(20_000 + worker % 6 * 2000, 22_000 + worker % 6 * 2000, 200):
        try:
            check_free(plan(MeshSettings(port_base=base), "", Path("consul")).ports)
        except PortTaken:
            continue
        return base
    raise AssertionError("no free ports")


def up(folder: Path, base: int, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    fixed = ("--engine", "sim", "--detach", "--port-base", str(base), "--ready-timeout-s", str(UP_WITHIN_S))
    return stoker(folder, "up", *fixed, *argv, code=code)


def within(seconds: float, holds: Callable[[], bool]) -> None:
    """Wait until it holds; an assertion fails if it does not in time."""
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s, "it did not come true in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run folder of a mesh of two zones, with an adapter."""
    folder = tmp_path_factory.mktemp("mesh")
    up(folder, free_base(), "--adapters", "tone=/adapters/tone")
    try:
        yield folder
    finally:
        seen = state.read(folder)
        stoker(folder, "down")
        assert seen is not None
        assert not any(process.identity and identity.alive(process.identity) for process in seen.processes)
        assert state.read(folder) is None


def running(folder: Path) -> state.MeshState:
    seen = state.read(folder)
    assert seen is not None
    return seen


def test_status_shows_every_zone_and_server(mesh: Path) -> None:
    found = json.loads(stoker(mesh, "status", "--json").stdout)
    zones = {
        zone["zone"]: [one["endpoint"]["server"] for one in zone["endpoints"]] for zone in found["router"]["zones"]
    }
    assert zones == {"zone-a": ["server-zone-a-1"], "zone-b": ["server-zone-b-1"]}
    assert found["mesh"]["phase"] == "up"
    shown = stoker(mesh, "status").stdout
    assert all(word in shown for word in ("router-zone-a", "server-zone-b-1", "alive", "hot", "catalog confirmed"))


def test_generate_explain_and_models(mesh: Path) -> None:
    ran = stoker(mesh, "generate", "The capital of France is", "--max-tokens", "4")
    assert len(ran.stdout.split()) == 4
    assert re.search(r"server-zone-.-1 in zone-. · \d+ tokens in, 4 out · first after \d+ ms · 1 attempt", ran.stderr)
    priced = json.loads(stoker(mesh, "explain", "x", "--json").stdout)
    assert {candidate["server"] for candidate in priced["candidates"]} == {"server-zone-a-1", "server-zone-b-1"}
    assert "server-zone-b-1" in stoker(mesh, "models").stdout


def test_servers_have_the_adapters_that_were_given(mesh: Path) -> None:
    assert len(stoker(mesh, "generate", "hello", "--model", "tone", "--max-tokens", "4").stdout.split()) == 4
    assert "tone" in stoker(mesh, "models").stdout


def test_a_second_mesh_in_the_same_folder_is_refused(mesh: Path) -> None:
    ran = up(mesh, free_base(), code=1)
    assert "already runs" in ran.stderr and str(running(mesh).supervisor.pid) in ran.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    base = free_base()
    with socket.create_server(("127.0.0.1", base + 100)):
        ran = up(tmp_path, base, code=1)
    assert f"port {base + 100}, which router-zone-b needs, is taken" in ran.stderr
    assert "--port-base" in ran.stderr


def test_a_killed_server_is_replaced_and_comes_back(mesh: Path) -> None:
    def server() -> state.ProcessState:
        return next(process for process in running(mesh).of_kind(Kind.SERVER) if process.zone == "zone-a")

    before = server()
    assert before.identity is not None and identity.send(before.identity, signal.SIGKILL)
    assert stoker(mesh, "generate", "x", "--max-tokens", "2").stdout.strip()
    within(30, lambda: server().phase is Phase.UP and server().identity not in (None, before.identity))
    assert server().restarts == before.restarts + 1


def test_a_drained_server_leaves_and_the_supervisor_starts_its_next_life(mesh: Path) -> None:
    def server() -> state.ProcessState:
        return next(process for process in running(mesh).of_kind(Kind.SERVER) if process.zone == "zone-b")

    within(30, lambda: server().phase is Phase.UP)
    before = server()
    ran = stoker(mesh, "drain", "server-zone-b-1", "--grace", "0")
    assert "server-zone-b-1 has left" in ran.stdout
    within(30, lambda: server().phase is Phase.UP and server().identity not in (None, before.identity))
    unknown = stoker(mesh, "drain", "nobody", code=1)
    assert "'nobody' is no server" in unknown.stderr and "server-zone-b-1" in unknown.stderr


def test_the_readmes_first_request_runs(mesh: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    here = program.replace("127.0.0.1:7070", running(mesh).routers()[0])
    assert here != program
    ran = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    # Its own zone's, or the other's while that is still coming back from the tests before.
    assert re.search(r" from server-zone-([ab])-1 in zone-\1\n", ran.stdout)
    assert len(ran.stdout.splitlines()[-1].split()) == 32


def test_no_log_has_a_prompt_or_an_answer(mesh: Path) -> None:
    """Logs are at their most talkative: see `stoker`."""
    answer = stoker(mesh, "generate", "swordfish marmalade", "--max-tokens", "8").stdout.split()
    stoker(mesh, "generate", "swordfish " * 9000, code=1)
    logs = {path.name: path.read_text() for path in (mesh / "logs").iterdir()}
    assert '"DEBUG"' in logs["router-zone-a.log"] and '"DEBUG"' in logs["server-zone-a-1.log"]
    said = [
        (name, word)
        for name, log in logs.items()
        for word in ("swordfish", "marmalade", " ".join(answer))
        if word in log
    ]
    assert not said


def test_the_plain_stubs_program_of_the_docs_runs(mesh: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/plain-stubs.md").read_text()
    program, _ = re.findall(r"```python\n(.*?)```", page, re.S)
    commands = re.findall(r"```sh\n(.*?)```", page, re.S)
    printed = re.findall(r"```text\n(.*?)```", page, re.S)
    stubs = next(command for command in commands if "protoc" in command)
    (tmp_path / "plain_client.py").write_text(program)
    # Nothing of this repository: its stubs, made here, come first and alone.
    environ = {**os.environ, "STOKER": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = stubs.replace("python -m pip install grpcio-tools googleapis-common-protos\n", "")
    assert made != stubs
    subprocess.run(["bash", "-euc", made], cwd=tmp_path, env=environ, check=True)
    router = running(mesh).routers()[0]
    asks = [
        command.replace("127.0.0.1:7070", router) for command in commands if command.startswith("python plain_client")
    ]
    assert len(asks) == 2
    good, refused = (
        subprocess.run(["bash", "-euc", ask], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        for ask in asks
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert re.search(r"\n16 tokens from server-zone-.-1 in zone-.\n$", good.stdout)
    assert refused.returncode == 1
    assert refused.stderr.strip() == printed[0].strip()


def test_detach_says_why_it_failed_and_leaves_nothing(tmp_path: Path) -> None:
    environ = {**os.environ, "STOKER_MESH_RUN_FOLDER": str(tmp_path), "CONSUL_BIN": str(find_consul(ROOT))}
    environ["STOKER_MODEL_SERVER_MAX_WAITING"] = "-5"
    argv = [sys.executable, "-m", "stoker_client", "up", "--engine", "sim", "--detach", "--port-base", str(free_base())]
    ran = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 1
    assert "max_waiting" in ran.stderr and "server-zone-" in ran.stderr and "Traceback" not in ran.stderr
    assert state.read(tmp_path) is None


def test_foreground_ends_in_order_at_ctrl_c(tmp_path: Path) -> None:
    environ = {**os.environ, "STOKER_MESH_RUN_FOLDER": str(tmp_path), "CONSUL_BIN": str(find_consul(ROOT))}
    argv = [
        sys.executable,
        "-m",
        "stoker_client",
        "up",
        "--zones",
        "1",
        "--engine",
        "sim",
        "--port-base",
        str(free_base()),
    ]
    process = subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        within(UP_WITHIN_S, lambda: (seen := state.read(tmp_path)) is not None and seen.phase is Phase.UP)
        seen = running(tmp_path)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, said
    ends = [line.split()[2] for line in said.splitlines() if line.endswith("stopped")]
    assert ends == ["router-zone-a", "server-zone-a-1", "consul-zone-a"]
    assert not any(one.identity and identity.alive(one.identity) for one in seen.processes)
