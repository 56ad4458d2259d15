"""Looks for values beyond the range of half floats: the float32 model on calibration data, value by value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError, ModelError
from ...compiler.ir.walk import node_label
from ...compiler.pass_api import Context
from ..quantize.calibrate import groups_of
from ..quantize.probe import Probe

_BATCH = 8
_SHOWN = 8


def peaks(
    model: ir.Model, values: Sequence[ir.Value], samples: Samples, ctx: Context
) -> dict[ir.Value, float]:
    """Return the largest finite magnitude of each value over the samples.

    Raises:
        DataError: `calibration-not-finite`: a value is not a number.
    """
    found = dict.fromkeys(values, 0.0)
    by_name = {str(value.name): value for value in values}
    session = Probe(model, [name for name in by_name if not by_name[name].is_graph_input()])
    size, done = _BATCH if samples.batchable else 1, 0
    for batch in samples.batches(size):
        ctx.check_cancelled()
        for group in groups_of([v for v in values if not v.is_graph_input()]):
            for name, array in session.run(batch, group).items():
                found[by_name[name]] = max(found[by_name[name]], _peak(name, array))
        for name in by_name.keys() & batch.keys():
            found[by_name[name]] = max(found[by_name[name]], _peak(name, batch[name]))
        done = min(done + size, len(samples))
        ctx.progress("ranges", done, len(samples))
    return found


def _peak(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> float:
    low = float(array.min(initial=0.0))
    high = float(array.max(initial=0.0))
    if np.isnan(low + high) and bool(np.isnan(array).any()):
        raise DataError(
            "calibration-not-finite",
            f"value {name!r} is not a number on the calibration samples",
            "check the scaling of the inputs",
        )
    if np.isfinite(low) and np.isfinite(high):
        return max(-low, high)
    sizes = np.abs(np.asarray(array, np.float32))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes)))


def refuse_overflow(found: dict[ir.Value, float], limit: float, kind: str) -> None:
    """Raise when a value is beyond the largest half float.

    Raises:
        ModelError: `half-overflow`, with every such value and its maximum.
    """
    beyond = sorted(((v, peak) for v, peak in found.items() if peak > limit), key=lambda pair: -pair[1])
    if not beyond:
        return
    parts = [_described(value, peak) for value, peak in beyond[:_SHOWN]]
    more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
    names = ",".join(str(value.name) for value, _ in beyond[:_SHOWN])
    raise ModelError(
        "half-overflow",
        f"{len(beyond)} value(s) leave {kind}, whose largest number is {limit:g}: {'; '.join(parts)}{more}",
        f'use bf16, leave the nodes in float32 with --exclude, or half{{type={kind} keep="{names}"}}',
    )


def _described(value: ir.Value, peak: float) -> str:
    node = value.producer()
    return f"{value.name!r} of {'the inputs' if node is None else node_label(node)} reaches {peak:.6g}"
