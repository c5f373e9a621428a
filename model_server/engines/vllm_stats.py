"""The vLLM engine's own figures, step by step."""

from typing import Any

from model_server.engine import EngineLoad


class StepStats:
    """What the engine's steps said of its load. `record` runs on the event loop, after each step, never when idle."""

    def __init__(self) -> None:
        self._steps = 0
        self._running = 0
        self._waiting = 0
        self._kv_usage = 0.0
        self._prefix_tokens = 0
        self._prefix_hit_tokens = 0

    def record(self, scheduler_stats: Any) -> None:
        """Take in one step; `scheduler_stats` is vLLM's SchedulerStats, None in some steps."""
        self._steps += 1
        if scheduler_stats is None:
            return
        self._running = scheduler_stats.num_running_reqs
        self._waiting = scheduler_stats.num_waiting_reqs + getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
        self._kv_usage = scheduler_stats.kv_cache_usage
        prefix = scheduler_stats.prefix_cache_stats
        if prefix is not None:
            self._prefix_tokens += prefix.queries
            self._prefix_hit_tokens += prefix.hits

    @property
    def prefix_tokens(self) -> int:
        """Prompt tokens looked up in the prefix cache, since the start."""
        return self._prefix_tokens

    @property
    def prefix_hit_tokens(self) -> int:
        """Of these, the ones found there."""
        return self._prefix_hit_tokens

    def load(self, streams: int) -> EngineLoad:
        """The latest figures, given how many streams there are: without any it is idle, whatever its last step said."""
        if streams == 0:
            return EngineLoad(steps=self._steps)
        return EngineLoad(
            steps=self._steps, running=self._running, waiting=self._waiting, kv_usage=min(max(self._kv_usage, 0.0), 1.0)
        )
