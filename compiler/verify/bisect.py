"""Finds a small set of layers that, left in float, brings the loss back within a limit."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence

from .records import BisectReport, Trial

Loss = Callable[[frozenset[str]], float]


class _Search:
    """Remembers trials and stops at a budget."""

    def __init__(self, loss: Loss, limit: float, budget: int) -> None:
        self._loss = loss
        self._limit = limit
        self._budget = budget
        self._known: dict[frozenset[str], float] = {}
        self.trials: list[Trial] = []

    @property
    def exhausted(self) -> bool:
        return len(self.trials) >= self._budget

    def loss(self, nodes: Sequence[str]) -> float:
        key = frozenset(nodes)
        if key not in self._known:
            self._known[key] = self._loss(key)
            self.trials.append(Trial(tuple(nodes), self._known[key]))
        return self._known[key]

    def enough(self, nodes: Sequence[str]) -> bool:
        return self.loss(nodes) <= self._limit


def find_guilty(
    suspects: Sequence[str], loss: Loss, limit: float, *, measure: str, budget: int = 64
) -> BisectReport:
    """Search for the smallest exclusion that brings the loss within `limit`.

    A binary search finds the shortest run of the most suspicious layers that suffices; then every part of it
    that is not needed is put back. The result is minimal (no single layer of it can be spared) where the
    budget allows, not always the smallest possible.

    Args:
        suspects: quantized nodes, most suspicious first.
        loss: loss with these nodes left in float.
        limit: largest loss accepted.
        measure: what the loss is, for the report.
        budget: number of trials after which the search ends with what it has.
    """
    search = _Search(loss, limit, budget)
    before = search.loss(())
    if before <= limit:
        return _report(search, (), before, limit, measure, "the loss is within the limit; nothing to exclude")
    if not suspects or not search.enough(suspects):
        note = "even with every quantized layer in float the loss exceeds the limit: look elsewhere"
        return _report(search, (), before, limit, measure, note)
    found = _spare(search, _shortest_prefix(search, suspects))
    note = "search ended at its budget; the set may not be minimal" if search.exhausted else ""
    return _report(search, tuple(found), before, limit, measure, note)


def exclude_line(nodes: Sequence[str]) -> str:
    """Return the options that leave these nodes in float, quoted for a shell.

    >>> exclude_line(["conv1", "a b"])
    "--exclude conv1 --exclude 'a b'"
    """
    return " ".join(f"--exclude {shlex.quote(node)}" for node in nodes)


def _shortest_prefix(search: _Search, suspects: Sequence[str]) -> list[str]:
    low, high = 0, len(suspects)  # `low` is not enough, `high` is
    while high - low > 1 and not search.exhausted:
        middle = (low + high) // 2
        low, high = (low, middle) if search.enough(suspects[:middle]) else (middle, high)
    return list(suspects[:high])


def _spare(search: _Search, nodes: list[str]) -> list[str]:
    """Put back ever smaller parts while the rest is still enough."""
    size = max(1, len(nodes) // 2)
    while not search.exhausted:
        smaller = next((rest for rest in _without_part(nodes, size) if _affordable(search, rest)), None)
        if smaller is not None:
            nodes = smaller
        elif size == 1:
            break
        else:
            size = max(1, size // 2)
    return nodes


def _without_part(nodes: Sequence[str], size: int) -> Iterator[list[str]]:
    # The least suspicious come last and are put back first.
    for start in reversed(range(0, len(nodes), size)):
        rest = [*nodes[:start], *nodes[start + size :]]
        if rest:
            yield rest


def _affordable(search: _Search, nodes: Sequence[str]) -> bool:
    return not search.exhausted and search.enough(nodes)


def _report(
    search: _Search, excluded: tuple[str, ...], before: float, limit: float, measure: str, note: str
) -> BisectReport:
    loss = search.loss(excluded)
    return BisectReport(
        measure=measure,
        limit=limit,
        loss_before=before,
        loss=loss,
        excluded=excluded,
        solved=loss <= limit,
        trials=tuple(search.trials),
        exclude_line=exclude_line(excluded),
        note=note,
    )
