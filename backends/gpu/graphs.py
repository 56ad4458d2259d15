"""Launches recorded once and replayed: one graph for every set of addresses that a program runs on often."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from ...compiler.errors import ParedError
from .cublaslt import FAILED
from .device import Device
from .library import Queue, queued
from .program import MatrixProduct, Program

# Of the caller's addresses; a training or serving loop has few.
_KEPT = 8
# Recording fails with one of these where something else is in the way; launching one by one still works.
_NOT_TRIED_AGAIN = ("cuda-failed", FAILED)

_Key = tuple[int, ...]


class Graphs:
    """Queues programs on one device.

    Args:
        device: where.
        functions: handles of all kernels.
        bases: addresses of working memory (`arena`) and constants (`weights`).
        products: what a library does instead of kernels.

    Attributes:
        trouble: why launches are not recorded, empty while they are.
    """

    def __init__(
        self,
        device: Device,
        functions: Mapping[str, int],
        bases: Mapping[str, int],
        products: Mapping[MatrixProduct, Queue],
    ) -> None:
        self._device, self._functions, self._bases, self._products = device, functions, bases, products
        self._own: dict[_Key, int | None] = {}
        self._lent: OrderedDict[_Key, int | None] = OrderedDict()
        self.trouble = ""

    def queue(self, program: Program, inputs: Sequence[int], outputs: Sequence[int], *, own: bool) -> None:
        """Queue a program on addresses of inputs and outputs.

        The first time its kernels are launched one by one, which loads them: recording must not meet that.
        When the addresses come again, they are recorded; `own` ones are kept, of others the last few.
        """
        key = (id(program), *inputs, *outputs)
        known = self._own if own else self._lent
        graph = known.get(key)
        if graph is None and key in known and not self.trouble:
            graph = self._record(program, inputs, outputs)
        known[key] = graph
        if graph is None:
            self._launch(program, inputs, outputs)
        else:
            self._device.replay(graph)
        if not own:
            self._limit(key)

    def _limit(self, key: _Key) -> None:
        self._lent.move_to_end(key)
        if len(self._lent) > _KEPT:
            _, old = self._lent.popitem(last=False)
            if old is not None:
                self._device.synchronize()
                self._device.forget(old)

    def _record(self, program: Program, inputs: Sequence[int], outputs: Sequence[int]) -> int | None:
        try:
            self._device.begin_capture()
            self._launch(program, inputs, outputs)
            return self._device.end_capture()
        except ParedError as err:
            self._device.drop_capture()
            if err.reason not in _NOT_TRIED_AGAIN:
                raise
            self.trouble = f"launched one by one, not as a graph: {err.message}"
            return None

    def _launch(self, program: Program, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        own = {"input": inputs, "output": outputs}
        addresses = [
            own[place.where][place.offset] if place.where in own else self._bases[place.where] + place.offset
            for place in program.places
        ]
        for step in program.launches:
            buffers = [addresses[index] for index in step.buffers]
            if not queued(self._products, step.product, buffers):
                self._device.launch(
                    self._functions[step.kernel], step.grid, step.block, step.shared_bytes, buffers
                )
