"""The thread that starts vLLM's processes and lives as long as they do."""

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from typing import Any

from model_server.engines import vllm_api

# How long a process that was killed may take to be gone.
_REAP_S = 5.0
# How long vLLM may take to end in order; it kills its processes after 5 s itself.
_END_S = 15.0


class Keeper:
    """One engine's. Made on the event loop that wants it.

    The kernel kills them when this very thread ends (parent_death), so it may be neither one of a pool, nor end early.
    """

    def __init__(self, arguments: dict[str, Any], on_step: vllm_api.OnStep) -> None:
        self._arguments = arguments
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[Any] = self._loop.create_future()
        self._ended = threading.Event()
        # Other engines of this server have processes, too. One engine loads at a time: what is new is this one's.
        self._before = {process.pid for process in multiprocessing.active_children()}
        self._own: list[BaseProcess] | None = None
        self._thread = threading.Thread(target=self._keep, name="vllm-keeper", daemon=True)
        self._thread.start()

    async def llm(self) -> Any:
        """The AsyncLLM, once it has loaded. Raises what vLLM raised."""
        return await asyncio.shield(self._started)

    def end(self) -> None:
        """End the processes and the thread, loaded or still loading. Blocks; not for the loop."""
        self._ended.set()
        deadline = time.monotonic() + _END_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            if not self._started.done():
                # Amid loading nothing else stops vLLM: without its processes the load fails.
                _kill(self._processes())
            self._thread.join(timeout=0.1)
        _kill(self._processes())

    def _processes(self) -> list[BaseProcess]:
        if self._own is not None:
            return self._own
        return [process for process in multiprocessing.active_children() if process.pid not in self._before]

    def _keep(self) -> None:
        try:
            llm = vllm_api.start(self._arguments, self._on_step)
            self._own = self._processes()
        except BaseException as error:  # Handed over to whoever awaits llm().
            self._report(None, error)
            return
        self._report(llm, None)
        self._ended.wait()
        vllm_api.shut_down(llm)

    def _report(self, llm: Any, error: BaseException | None) -> None:
        def settle() -> None:
            if self._started.done():
                return
            if error is None:
                self._started.set_result(llm)
            else:
                self._started.set_exception(error)
                self._started.exception()  # Seen, even if nobody waits any more.

        self._loop.call_soon_threadsafe(settle)


def _kill(processes: Iterable[BaseProcess]) -> None:
    """Kill and reap those that still run."""
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join(_REAP_S)
