"""Real vLLM under faults: `python -m bench.faults_vllm --kills 5 --cuts 25` writes what came of every stream.

vLLM servers on this machine behind a router, each a process of its own, in one zone with its Consul. Streams of eight
kinds are in flight when a server is killed (SIGKILL), its engine's process is, or its connections are cut. Each stream
is held against what must be true of it by itself, and against its own unfaulted controls, of which there are several
under the same load, before and among the faults: where those differ among themselves, bytes cannot be wrong.

What follows `--` goes to the servers: `-- --vllm-dtype float32`. Which modes they offer is chosen by their environment:
without the plugin `stoker_resume` no restore (`--env VLLM_PLUGINS=stoker_parent_death`).
"""

import argparse
import json
import os
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tokenizers import Tokenizer

from bench.faults_vllm import kinds, table, trials
from bench.faults_vllm.mesh import ROOT, ServerKind, running
from bench.stopped import until_stopped

_MODEL = Path(os.environ.get("STOKER_MODEL") or ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct")
_LOADED_WITHIN_S = 300.0


async def measure(options: argparse.Namespace) -> None:
    """All trials. What is there when something fails, or when time is up, is worth keeping too."""
    done: list[trials.Trial] = []
    rng = random.Random(options.seed)
    names = [f"vllm-{number}" for number in range(1, options.servers + 1)]
    kind = ServerKind(options.model, tuple(options.flags), dict(each.split("=", 1) for each in options.env))
    faults = trials.order(options.kills, options.engines, options.cuts, options.controls)
    with ExitStack() as held:
        folder = options.logs or Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        async with running(kind, names, folder) as mesh:
            await mesh.until_usable(options.servers, _LOADED_WITHIN_S)
            print(f"{options.servers} servers are up", flush=True)
            plain = kinds.streams(options.model.name, options.kinds, options.streams, options.tokens)
            asked = await trials.with_stop_strings(mesh, plain)
            try:
                async for trial in trials.run(mesh, asked, faults, rng, options.turn):
                    done.append(trial)
                    print(f"{len(done)} of {len(faults)}: {_told(trial)}", flush=True)
            finally:
                _keep(options, done, asked)


def _told(trial: trials.Trial) -> str:
    resumed = sum(came.resumed for came in trial.came.values())
    failed = [f"{name}: {came.error}" for name, came in trial.came.items() if came.error]
    return f"{trial.fault} {trial.hit}, resumed {resumed}, failed {failed}"


def _keep(options: argparse.Namespace, done: list[trials.Trial], asked: list[kinds.Asked]) -> None:
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    made = table.rows(done, asked, lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))
    with options.out.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in made)
    print(table.report(made), flush=True)


def main() -> None:
    """Parse, run, write the rows, print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults_vllm", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--kills", type=int, default=5, help="servers killed")
    parser.add_argument("--engines", type=int, default=0, help="engine processes killed")
    parser.add_argument("--cuts", type=int, default=25, help="links cut")
    parser.add_argument("--controls", type=int, default=3, help="trials without a fault before the first one with one")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8, help="at once")
    parser.add_argument("--kinds", default=",".join(kinds.KINDS), type=lambda text: text.split(","), help="of streams")
    parser.add_argument("--tokens", type=int, default=72, help="of each stream")
    parser.add_argument("--model", type=Path, default=_MODEL, help="the model's folder")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="of the servers")
    parser.add_argument("--turn", type=Path, help="a lock file: trials take turns with other runs that name it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="folder to keep the processes' logs in")
    parser.add_argument("--out", type=Path, default=Path("bench/results/faults_vllm.jsonl"))
    parser.add_argument("flags", nargs="*", help="of the servers, after --")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    until_stopped(measure(options), "trials")


if __name__ == "__main__":
    main()
