"""An engine core that is made up: `python -m bench.throughput.made_up OUTPUTS ASKED STEP_MS VOCABULARY`.

A process of its own that speaks vLLM's wire to its front end: a step with one token for each live sequence every
STEP_MS, whether or not anybody keeps up, as a GPU does. `set_in` puts it in the place of a loaded AsyncLLM's own, which
stays there for all else and has nothing to do. So the front end is measured alone, with all that it does, and no GPU.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from bench.relay.systems import ROOT

# So many are drawn and used one after another; each stream is a place further on, so that texts differ.
_IDS = 4096
# Between two looks whether its front end still lives.
_IDLE_S = 0.5


def set_in(llm: Any, step_ms: float) -> "MadeUpCore":
    """Have `llm`'s requests answered by a made-up core. Close what comes back when `llm` is shut down."""
    return MadeUpCore(llm, step_ms)


class MadeUpCore:
    """The front end's side of it. Leans on AsyncMPClient's names, as vLLM 0.26 and 0.32 have them."""

    def __init__(self, llm: Any, step_ms: float) -> None:
        self._core = llm.engine_core
        self._folder = tempfile.TemporaryDirectory(prefix="made-up-core-")
        asked = f"ipc://{self._folder.name}/asked"
        self._asks: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._asks.set_hwm(0)
        self._asks.bind(asked)
        outputs = self._core.resources.output_socket.getsockopt_string(zmq.LAST_ENDPOINT)
        vocabulary = llm.vllm_config.model_config.get_vocab_size()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, outputs, asked, str(step_ms), str(vocabulary)], cwd=ROOT
        )
        self._core.add_request_async = self._add
        self._core.abort_requests_async = self._abort

    def _add(self, request: Any) -> Awaitable[None]:
        # As AsyncMPClient does before it sends: the task that reads the outputs belongs to the running loop.
        self._core._ensure_output_queue_task()
        # What the request itself costs to send is part of the front end's work.
        self._core.encoder.encode(request)
        prompt = len(request.prompt_token_ids)
        sampling = request.sampling_params
        # A sequence that is gone on with has had these (vllm_resume).
        emitted = sum(len(ids) for ids in (sampling.extra_args or {}).values())
        tokens = max(1, sampling.max_tokens - emitted)
        self._asks.send(msgspec.msgpack.encode((request.request_id, prompt, tokens)))
        return asyncio.sleep(0)

    def _abort(self, request_ids: Iterable[str]) -> Awaitable[None]:
        for request_id in request_ids:
            self._asks.send(msgspec.msgpack.encode((request_id, 0, 0)))
        return asyncio.sleep(0)

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()
        self._asks.close(linger=0)
        self._folder.cleanup()


@dataclass(frozen=True, slots=True)
class Made:
    """What a step gives one sequence. `new` in its first: the prompt's length, and when it was asked for."""

    request_id: str
    token_ids: list[int]
    last: bool
    new: tuple[int, float] | None


class Sequences:
    """Those that are under way. Pure."""

    def __init__(self, vocabulary: int) -> None:
        rng = random.Random(1)
        self._ids = [[rng.randrange(vocabulary // 8, vocabulary * 7 // 8)] for _ in range(_IDS)]
        self._left: dict[str, int] = {}
        self._new: dict[str, tuple[int, float]] = {}
        self._steps = 0

    def __bool__(self) -> bool:
        return bool(self._left)

    def ask(self, request_id: str, prompt_tokens: int, tokens: int, now_s: float) -> None:
        """One begins; it is to have so many tokens. None: it is aborted."""
        if tokens:
            self._left[request_id] = tokens
            self._new[request_id] = (prompt_tokens, now_s)
        else:
            self._left.pop(request_id, None)
            self._new.pop(request_id, None)

    def step(self) -> list[Made]:
        """A token for each."""
        self._steps += 1
        made = [
            Made(request_id, self._ids[(self._steps * 7 + place) % _IDS], left == 1, self._new.pop(request_id, None))
            for place, (request_id, left) in enumerate(self._left.items())
        ]
        self._left = {request_id: left - 1 for request_id, left in self._left.items() if left > 1}
        return made


def _run(outputs: str, asked: str, step_s: float, vocabulary: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    out, asks = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    for socket, address in ((out, outputs), (asks, asked)):
        socket.set_hwm(0)
        socket.connect(address)
    written = _writer()
    sequences, next_s = Sequences(vocabulary), time.monotonic()
    parent = os.getppid()
    while os.getppid() == parent:
        wait_s = max(0.0, next_s - time.monotonic()) if sequences else _IDLE_S
        if asks.poll(int(wait_s * 1e3)):
            now_s = time.monotonic()
            if not sequences:
                next_s = now_s + step_s
            request_id, prompt_tokens, tokens = msgspec.msgpack.decode(asks.recv())
            sequences.ask(request_id, prompt_tokens, tokens, now_s)
        elif sequences:
            time.sleep(max(0.0, next_s - time.monotonic()))
            now_s = time.monotonic()
            # One after another: a step that comes late shifts those behind it.
            next_s = max(next_s + step_s, now_s)
            out.send_multipart(written(sequences.step(), now_s), copy=False)


def _writer() -> Callable[[list[Made], float], Any]:
    """A step as vLLM's engine core sends it."""
    # Here, since the front end's process must set variables before it imports vLLM.
    from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
    from vllm.v1.serial_utils import MsgpackEncoder

    encoder = MsgpackEncoder()

    def written(made: list[Made], now_s: float) -> Any:
        outputs = []
        for each in made:
            one = EngineCoreOutput(request_id=each.request_id, new_token_ids=each.token_ids)
            if each.last:
                one.finish_reason = FinishReason.LENGTH
            if each.new is not None:
                prompt_tokens, came_s = each.new
                one.events = [
                    EngineCoreEvent(EngineCoreEventType.QUEUED, came_s),
                    EngineCoreEvent(EngineCoreEventType.SCHEDULED, now_s),
                ]
                one.prefill_stats = PrefillStats(num_prompt_tokens=prompt_tokens, num_computed_tokens=prompt_tokens)
            outputs.append(one)
        stats = SchedulerStats(num_running_reqs=len(made))
        return encoder.encode(EngineCoreOutputs(outputs=outputs, scheduler_stats=stats))

    return written


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1e3, int(sys.argv[4]))
