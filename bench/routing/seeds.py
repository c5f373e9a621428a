"""Runs that differ in nothing but their seed: their mean, and from where to where they go."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from bench.routing.figures import Figures
from bench.routing.suite import Result


@dataclass(frozen=True, slots=True)
class Seeds:
    """One or more results of one workload, load, policy and number of routers, in order of their seeds."""

    results: tuple[Result, ...]

    @property
    def workload(self) -> str:
        """All results'."""
        return self.results[0].cell.workload

    @property
    def load(self) -> float:
        """All results', in requests a second."""
        return self.results[0].cell.load

    @property
    def policy(self) -> str:
        """All results'."""
        return self.results[0].cell.policy

    @property
    def routers(self) -> int:
        """All results'."""
        return self.results[0].cell.routers

    def values(self, of: Callable[[Figures], float]) -> list[float]:
        """A figure of each."""
        return [of(each.figures) for each in self.results]

    def mean(self, of: Callable[[Figures], float]) -> float:
        """A figure's mean over the seeds."""
        return sum(self.values(of)) / len(self.results)

    def means(self, of: Callable[[Figures], tuple[float, ...]]) -> tuple[float, ...]:
        """Quantiles, each the mean of the seeds' own."""
        columns = zip(*(of(each.figures) for each in self.results), strict=True)
        return tuple(sum(column) / len(column) for column in columns)


def by_seed(results: Iterable[Result]) -> list[Seeds]:
    """The results, those together that differ only in their seed; in the order in which each first comes."""
    groups: dict[object, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.cell, seed=0), []).append(result)
    return [Seeds(tuple(sorted(group, key=lambda each: each.cell.seed))) for group in groups.values()]
