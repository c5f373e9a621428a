"""Routers killed by SIGKILL while `stoker generate`, or a program with plain stubs, streams: real processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from discovery.consul_agent import find_consul
from stoker_client.mesh import identity, state
from stoker_client.mesh.state import Kind, Phase
from tests.integration.stoker_client.test_mesh import ROOT, free_base, running, stoker, up, within

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]

# At 8 ms a token: long enough to be killed in the middle.
ASK = ("generate", "The capital of France is", "--max-tokens", "300", "--seed", "7")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run folder of a mesh of two zones."""
    folder = tmp_path_factory.mktemp("mesh")
    up(folder, free_base())
    try:
        yield folder
    finally:
        stoker(folder, "down")


def router(folder: Path, zone: str) -> state.ProcessState:
    """As it is now."""
    return next(each for each in running(folder).of_kind(Kind.ROUTER) if each.zone == zone)


def consul(folder: Path) -> str:
    """The first zone's agent."""
    return running(folder).of_kind(Kind.CONSUL)[0].address


def interrupted(folder: Path, argv: Sequence[str], cwd: Path, environ: dict[str, str]) -> tuple[str, str]:
    """What the program prints on either stream while the first zone's router is killed under it; all routers are up
    again afterwards."""
    before = router(folder, "zone-a")
    # Files, not pipes: what was read of a pipe to see it begin would be missing at the end.
    printed, noted = cwd / "stdout", cwd / "stderr"
    with printed.open("wb") as stdout, noted.open("wb") as stderr:
        process = subprocess.Popen(argv, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    try:
        within(30, lambda: printed.stat().st_size > 40)
        assert before.identity is not None and identity.send(before.identity, signal.SIGKILL)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    said = noted.read_text()
    assert process.returncode == 0, said
    within(
        30, lambda: router(folder, "zone-a").phase is Phase.UP and router(folder, "zone-a").restarts > before.restarts
    )
    return printed.read_text(), said


@pytest.mark.parametrize("form", ["both addresses", "consul", "one address"])
def test_generate_prints_the_same(mesh: Path, form: str, tmp_path: Path) -> None:
    forms = {
        "both addresses": ",".join(running(mesh).routers()),
        "consul": f"consul://{consul(mesh)}",
        # The same router, once it has been started again.
        "one address": router(mesh, "zone-a").address,
    }
    expected = stoker(mesh, *ASK, "--router", forms[form]).stdout
    assert len(expected.split()) > 280
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
    environ |= {"STOKER_MESH_RUN_FOLDER": str(mesh), "STOKER_CLIENT_ROUTER": forms[form]}
    found, said = interrupted(mesh, [sys.executable, "-m", "stoker_client", *ASK], tmp_path, environ)
    assert found == expected
    assert re.search(r"tokens in.*300 out · .*2 attempts \(server-zone-a-1: router 127.0.0.1:\d+: ", said), said


def test_routers_are_in_consul(mesh: Path) -> None:
    for zone in ("zone-a", "zone-b"):
        command = [str(find_consul(ROOT)), "catalog", "services", "-tags", f"-datacenter={zone}"]
        shown = subprocess.run(
            [*command, f"-http-addr={consul(mesh)}"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
        assert "stoker-router" in shown


def test_the_plain_stubs_program_of_the_docs_resumes(mesh: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/plain-stubs.md").read_text()
    _, program = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "resuming_client.py").write_text(program)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    protos = [str(each) for each in sorted((ROOT / "protos/stoker/v1").glob("*.proto"))]
    stubs = ["-m", "grpc_tools.protoc", "-I", str(ROOT / "protos"), "--python_out=.", "--grpc_python_out=."]
    subprocess.run([sys.executable, *stubs, *protos], cwd=tmp_path, check=True)
    argv = [sys.executable, "-u", "resuming_client.py", ",".join(running(mesh).routers()), "The capital of France is"]
    expected = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60)
    assert re.search(r"\n300 tokens from server-zone-a-1\n$", expected.stdout)
    found, said = interrupted(mesh, argv, tmp_path, environ)
    text, _, last = found[:-1].rpartition("\n")
    assert text == expected.stdout[:-1].rpartition("\n")[0]
    assert re.fullmatch(r"300 tokens from server-zone-a-1, then server-zone-.-1", last)
    assert "went on at" in said
