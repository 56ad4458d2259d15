"""Writes bases into a graph: QONNX quantizers that are added up, or one DequantizeLinear of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.quant import QuantParams, QuantSpec, Scheme
from ..prune.weights import Weight
from ..quantize.emit import Emitter
from .bases import Bases

Floats = npt.NDArray[np.floating]

_BIPOLAR = QuantSpec(1, scheme=Scheme.BIPOLAR)
_TERNARY = QuantSpec(2, narrow=True)
_BYTES = QuantSpec(8, narrow=True)
_NEED_ZERO = frozenset({"Gemm", "MatMul"})
"""onnxruntime fuses these only when weights have an explicit zero point."""


def write_bases(model: ir.Model, weight: Weight, groups: Sequence[Bases], ternary: bool) -> None:
    """Let the layer read a sum of `BipolarQuant` (`Quant` of 2 bits, narrow) under the weight's name."""
    out, base = Emitter(model), str(weight.value.name)
    codes = np.stack([part.codes for part in groups], axis=1)
    scales = np.concatenate([part.scales for part in groups], axis=1)
    terms: list[ir.Value] = []
    for number, (code, scale) in enumerate(zip(codes, scales, strict=True)):
        stored = weight.view.from_matrix(code)
        spec = _with_axis(_TERNARY if ternary else _BIPOLAR, weight)
        params = QuantParams(spec, np.asarray(scale, np.float32), np.zeros(len(scale), np.int64))
        real = stored.astype(np.float32) * _spread(params, stored.ndim)
        data = out.constant(real if ternary else stored.astype(np.float32), f"{base}_signs{number}")
        terms.append(out.fake_quantize(data, params, stored.ndim, f"{base}_basis{number}"))
    _replace(out, weight, _summed(out, terms, base))


def write_bytes(model: ir.Model, weight: Weight, integers: npt.NDArray[np.int8], scales: Floats) -> None:
    """Let the layer read `DequantizeLinear` of int8 under the weight's name.

    Args:
        model: edited.
        weight: of it.
        integers: `[groups, rows, k]`.
        scales: `[groups * rows]`.
    """
    out, base = Emitter(model), str(weight.value.name)
    spec = _with_axis(_BYTES, weight)
    params = QuantParams(spec, np.asarray(scales, np.float32), np.zeros(len(scales), np.int64))
    stored = out.constant(weight.view.from_matrix(integers).astype(np.int8), f"{base}_int")
    zero = any(use.node.op_type in _NEED_ZERO for use in weight.uses)
    _replace(out, weight, [out.dequantize(stored, params, stored, base, zero=zero)])


def _with_axis(spec: QuantSpec, weight: Weight) -> QuantSpec:
    axis = 1 if weight.view.layout == "transposed" else 0
    return QuantSpec(spec.bits, spec.signed, spec.narrow, spec.scheme, axis)


def _spread(params: QuantParams, rank: int) -> npt.NDArray[np.float32]:
    shape = [1] * rank
    assert params.spec.axis is not None, "scales per channel"
    shape[params.spec.axis] = -1
    return np.asarray(params.scale, np.float32).reshape(shape)


def _summed(out: Emitter, terms: list[ir.Value], base: str) -> list[ir.Value]:
    """Return the values to insert, the sum last."""
    made, total = list(terms), terms[0]
    for number, term in enumerate(terms[1:], start=1):
        total = out.node("Add", [total, term], term, base=f"{base}_sum{number}")
        made.append(total)
    return made


def _replace(out: Emitter, weight: Weight, made: list[ir.Value]) -> None:
    """Give the layers the last of the values; it takes the weight's name."""
    old, maker, name = weight.value, weight.value.producer(), str(weight.value.name)
    out.insert(made, None)
    for use in weight.uses:
        use.node.replace_input_with(use.port, made[-1])
    if maker is not None:
        walk.remove_chain(maker)
    else:
        walk.drop_unused_initializer(old)
    walk.rename(old, None)
    walk.rename(made[-1], name)
