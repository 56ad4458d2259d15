"""Pad with every mode and with negative pads, which crop."""

from __future__ import annotations

import numpy as np

from .base import Array, Integers, Kernel

_MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect", "wrap": "wrap"}


class Pad(Kernel):
    """ONNX Pad (opset 11 and later)."""

    def _run(
        self,
        data: Array,
        pads: Integers,
        value: Array | None = None,
        axes: Integers | None = None,
        mode: str | None = None,
    ) -> tuple[Array]:
        where = range(data.ndim) if axes is None else [int(axis) % data.ndim for axis in axes]
        widths = [(0, 0)] * data.ndim
        for index, axis in enumerate(where):
            widths[axis] = (int(pads[index]), int(pads[index + len(where)]))
        cropped = data[
            tuple(slice(max(-b, 0), n + min(e, 0)) for n, (b, e) in zip(data.shape, widths, strict=True))
        ]
        grown = [(max(b, 0), max(e, 0)) for b, e in widths]
        if mode in (None, "constant"):
            fill = np.zeros((), data.dtype) if value is None else np.reshape(value, ()).astype(data.dtype)
            return (np.pad(cropped, grown, constant_values=fill),)
        return (np.pad(cropped, grown, mode=_MODES[mode]),)  # type: ignore[call-overload]
