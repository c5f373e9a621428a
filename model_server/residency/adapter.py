"""A LoRA adapter as one of a server's models: hot while its base is and the base's engine holds it.

It has no engine of its own, and takes none of the memory budget: an engine has set its adapters' room aside. What runs
on it runs on its base, too, so that both have one queue, one meter and one record of what is cached.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from discovery.endpoint import ModelState, Residency
from model_server.engine import EngineError, EngineLoad
from model_server.residency.held import Held, Surroundings
from model_server.residency.spec import AdapterSpec, ModelSpec


class HeldAdapter(Held):
    """An adapter and where it is: HOT, or STAGED or LISTED. Nothing else can be said of weights this small."""

    def __init__(self, spec: AdapterSpec, base: Held, around: Surroundings) -> None:
        super().__init__(ModelSpec(spec.name, base.spec.make, staged=spec.staged), around)
        self.base = base
        self.meter, self.admission = base.meter, base.admission
        self._source = spec.source
        base.adapters.append(self)

    @property
    def hot(self) -> bool:
        """Whether it answers now."""
        return super().hot and self.base is not None and self.base.hot

    def state(self, ready_s: float | None) -> ModelState:
        """Where it is, for the catalog. It is not hot any more when its base is on its way out."""
        base = self.base
        if base is None:
            raise EngineError(f"the adapter {self.name!r} has no base")
        known = super().state(ready_s)
        if known.residency is Residency.HOT and not base.hot:
            known = replace(known, residency=Residency.STAGED)
        most = base.info.max_model_tokens if base.info else base.spec.max_model_tokens
        return replace(known, base=base.name, max_model_tokens=most)

    def load(self) -> EngineLoad:
        """Nothing that its base's figures do not have."""
        return EngineLoad()

    async def bring(self, tell: Callable[[str], None]) -> None:
        """Have the base's engine load it. The base is hot, and stays so meanwhile. Raises EngineError."""
        base = self.base
        if base is None or base.engine is None:
            raise EngineError(f"the base of the adapter {self.name!r} is not loaded")
        tell("loading the adapter")
        await base.engine.add_adapter(self.name, self._source)
        self.engine, self.info, self.cache = base.engine, base.info, base.cache
        self.residency = Residency.HOT
        self.used_at_s = self.hot_since_s = self._around.clock()
        self.running.open()

    async def put(self, to: Residency) -> None:
        """Drop it: it does not sleep. Nothing may run on it."""
        await self.drop()

    async def drop(self) -> None:
        """Have the engine let go of it. Nothing happens if it does not hold it."""
        engine = self.engine
        self.gone()
        if engine is not None:
            await engine.drop_adapter(self.name)

    def gone(self) -> None:
        """The engine holds it no more, or is gone itself."""
        if self.residency is Residency.HOT:
            # What was loaded once lies on the disk, also where a hub's cache holds it.
            self.residency = Residency.STAGED
        self.engine = self.cache = None


def hold(specs: Sequence[ModelSpec | AdapterSpec], around: Surroundings) -> list[Held]:
    """The models and, behind their bases, the adapters. Raises KeyError for an adapter of none of the models."""
    models = {spec.name: Held(spec, around) for spec in specs if isinstance(spec, ModelSpec)}
    adapters = [HeldAdapter(spec, models[spec.base], around) for spec in specs if isinstance(spec, AdapterSpec)]
    return [*models.values(), *adapters]
