"""Loop and Scan as the specification has them: any axes and directions, stacked outputs, empty trips."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ...compiler.errors import UnsupportedOp
from .base import Array


class _WithBody(OpRun):
    body: ReferenceEvaluator

    def need_context(self) -> bool:
        """Bodies see the values of the graphs around them."""
        return True

    def _call(self, context: Mapping[str, Array], own: Mapping[str, Array]) -> list[Array]:
        # Our evaluator only reads its feeds, so any mapping will do.
        results = self.body.run(
            None, cast("dict[str, Any]", ChainMap(dict(own), cast("dict[str, Array]", context)))
        )
        return cast("list[Array]", results)


class Loop(_WithBody):
    """ONNX Loop."""

    def _run(self, trips, cond, *states, context=None, **_):  # type: ignore[no-untyped-def]
        names, carried = self.body.input_names, list(states)
        kept: list[list[Array]] = [[] for _ in range(len(self.body.output_names) - 1 - len(carried))]
        going = True if cond is None else bool(np.all(cond))
        step = 0
        while going and (trips is None or step < int(np.reshape(trips, ()))):
            own = dict(zip(names, [np.asarray(step, np.int64), np.asarray(going), *carried], strict=True))
            results = self._call(context or {}, own)
            going = bool(np.all(results[0]))
            carried = results[1 : 1 + len(carried)]
            for column, item in zip(kept, results[1 + len(carried) :], strict=True):
                column.append(item)
            step += 1
        return (*carried, *(_stack(self, column, 0, False) for column in kept))


class Scan(_WithBody):
    """ONNX Scan (opset 9 and later)."""

    num_scan_inputs: int
    scan_input_axes: list[int] | None
    scan_input_directions: list[int] | None
    scan_output_axes: list[int] | None
    scan_output_directions: list[int] | None

    def _run(self, *args, context=None, **_):  # type: ignore[no-untyped-def]
        count = self.num_scan_inputs
        states, sequences = list(args[: len(args) - count]), args[len(args) - count :]
        axes, backward = _flags(self.scan_input_axes, count), _flags(self.scan_input_directions, count)
        columns = [
            np.flip(moved, 0) if back else moved
            for moved, back in zip(map(_front, sequences, axes), backward, strict=True)
        ]
        kept: list[list[Array]] = [[] for _ in range(len(self.body.output_names) - len(states))]
        for items in zip(*columns, strict=True):
            own = dict(zip(self.body.input_names, [*states, *map(np.asarray, items)], strict=True))
            results = self._call(context or {}, own)
            states = results[: len(states)]
            for column, item in zip(kept, results[len(states) :], strict=True):
                column.append(item)
        axes, backward = (
            _flags(self.scan_output_axes, len(kept)),
            _flags(self.scan_output_directions, len(kept)),
        )
        stacked = (_stack(self, c, a, bool(b)) for c, a, b in zip(kept, axes, backward, strict=True))
        return (*states, *stacked)


def _flags(given: Sequence[int] | None, count: int) -> list[int]:
    return list(given) if given else [0] * count


def _front(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, 0)


def _stack(node: OpRun, items: Sequence[Array], axis: int, backward: bool) -> Array:
    if not items:
        raise UnsupportedOp(
            "empty-loop",
            f"node {node.onnx_node.name!r} ({node.op_type}) ran no iteration, so the shape of what it would "
            "stack is unknown",
            "give it at least one step",
        )
    return np.stack(items[::-1] if backward else items, axis=axis)
