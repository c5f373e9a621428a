"""The command against a router over real gRPC, in a process of its own, as users run it."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stoker.v1 import inference_pb2
from stoker_common import refusal
from tests.integration.stoker_client.fake_mesh import Part, delta, serving, started

pytestmark = pytest.mark.integration

ANSWER = [
    started("s1"),
    delta("Pa", 1),
    delta("ris\x1b[31m", 2, 3),
    Part(
        finished=inference_pb2.Finished(
            usage=inference_pb2.Usage(prompt_tokens=3, completion_tokens=3),
            attempts=[inference_pb2.Attempt(server="s0", code=14, reason="gone"), inference_pb2.Attempt(server="s1")],
        )
    ),
]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


async def stoker(folder: Path, *argv: str, **environ: str) -> Ran:
    """Run the command in an empty folder."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stoker_client",
        *argv,
        cwd=folder,
        env={**mine, **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def test_generate_prints_the_answer_and_who_gave_it(tmp_path: Path) -> None:
    async with serving(parts=ANSWER) as router:
        ran = await stoker(tmp_path, "generate", "x", "--router", router.address, "--max-tokens", "3", "--stop", "a")
    assert ran.code == 0
    # Into a pipe the text goes as it is.
    assert ran.out == "Paris\x1b[31m\n"
    assert "s1 in zone-a" in ran.err and "2 attempts (s0: gone)" in ran.err and "3 out" in ran.err
    asked = router.requests[-1].generation
    assert (asked.model, asked.sampling.max_tokens, list(asked.sampling.stop)) == ("m", 3, ["a"])
    assert not asked.sampling.HasField("temperature")


async def test_generate_json_is_the_whole_answer(tmp_path: Path) -> None:
    async with serving(parts=ANSWER) as router:
        ran = await stoker(
            tmp_path, "generate", "x", "--model", "m", "--json", "--chat", STOKER_CLIENT_ROUTER=router.address
        )
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert answer["outputs"][0]["text"] == "Paris\x1b[31m"
    assert answer["finished"]["attempts"][1]["server"] == "s1"
    assert router.requests[-1].generation.chat.messages[0].content[0].text == "x"


@pytest.mark.parametrize(("models", "says"), [(["a", "b"], "there are a, b"), ([], "no server has one")])
async def test_the_model_is_asked_for_when_it_is_not_clear(tmp_path: Path, models: list[str], says: str) -> None:
    async with serving(models=models) as router:
        ran = await stoker(tmp_path, "generate", "x", "--router", router.address)
    assert ran.code == 2
    assert says in ran.err


async def test_a_refusal_is_one_readable_line(tmp_path: Path) -> None:
    refused = refusal.exhausted("too many", reason="OVERLOADED", field="generation.model", retry_after_s=2.0)
    async with serving(refusal=refused) as router:
        ran = await stoker(tmp_path, "generate", "x", "--model", "m", "--router", router.address)
    assert ran.code == 1
    assert ran.err.strip() == "Error: RESOURCE_EXHAUSTED: generation.model: too many; try again in 2 s"
    assert ran.out.strip() == ""


async def test_nobody_there(tmp_path: Path) -> None:
    ran = await stoker(tmp_path, "models", "--router", "127.0.0.1:1")
    assert ran.code == 1
    assert "127.0.0.1:1" in ran.err and "Traceback" not in ran.err


async def test_explain(tmp_path: Path) -> None:
    async with serving() as router:
        table = await stoker(tmp_path, "explain", "x", "--router", router.address)
        machine = await stoker(tmp_path, "explain", "x", "--router", router.address, "--json")
    assert "1.25" in table.out and "ejected [for 30 s]" in table.out
    assert "50.50" in table.out
    # A term that usually is 0 is shown where it counts.
    assert "ramp" in table.out and "0.75" in table.out
    assert [candidate["server"] for candidate in json.loads(machine.out)["candidates"]] == ["s1", "s2"]


async def test_status_and_models(tmp_path: Path) -> None:
    async with serving() as router:
        status = await stoker(tmp_path, "status", "--router", router.address, "--json")
        models = await stoker(tmp_path, "models", "--router", router.address)
    assert json.loads(status.out)["router"]["router"] == router.address
    assert "s1" in models.out


@pytest.mark.parametrize(
    ("flags", "environ", "file", "source"),
    [
        (["--zones", "0"], {"STOKER_MESH_ZONES": "99"}, "[mesh]\nzones = 98", "--zones"),
        ([], {"STOKER_MESH_ZONES": "99"}, "[mesh]\nzones = 98", "$STOKER_MESH_ZONES"),
        ([], {}, "[mesh]\nzones = 98", "stoker.toml"),
        (["--consul-servers", "2"], {}, "", "1 or 3"),
    ],
)
async def test_wrong_settings_name_key_and_source(
    tmp_path: Path, flags: list[str], environ: dict[str, str], file: str, source: str
) -> None:
    (tmp_path / "stoker.toml").write_text(file)
    ran = await stoker(tmp_path, "up", "--engine", "sim", *flags, **environ)
    assert ran.code == 2
    assert source in ran.err
    assert "zones" in ran.err or "consul_servers" in ran.err
    assert not (tmp_path / ".cache").exists()


async def test_down_without_a_mesh(tmp_path: Path) -> None:
    ran = await stoker(tmp_path, "down")
    assert (ran.code, "no mesh runs" in ran.out) == (0, True)


async def test_help_imports_no_grpc(tmp_path: Path) -> None:
    program = (
        "import sys; from stoker_client.cli.app import app; app(['--help'], standalone_mode=False);"
        "sys.exit('grpc' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
