"""The garbage collector of a process that serves: its pauses are every stream's pauses."""

import gc


def settle() -> None:
    """What is there now stays until the end: the collector need not look at it again, nor so often at the rest.

    By default it looks after every 700 objects kept, which a few hundred streams make in a step, and now and then at
    everything there is, of which vLLM alone brings more than a million. Call it when start-up is over.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
