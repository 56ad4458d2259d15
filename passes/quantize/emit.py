"""Writing nodes and constants into a graph: fresh names, types set, equal small constants stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.quant import QONNX_DOMAIN, QuantParams, QuantSpec, Scheme

Array: TypeAlias = npt.NDArray[np.generic]

# Larger constants are weights, which are told apart by their decision instead of by content.
_SHARED_BYTES = 1 << 12


class Emitter:
    """Adds nodes and constants to the main graph of a model."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self._names = walk.Names(model)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def fresh(self, base: str) -> str:
        """Return an unused name."""
        return self._names.fresh(base)

    def constant(self, array: npt.ArrayLike, base: str) -> ir.Value:
        """Return a constant; a small one with the same content is shared."""
        content = np.asarray(array)
        key = (
            content.dtype.str,
            content.shape,
            content.tobytes() if content.nbytes <= _SHARED_BYTES else b"",
        )
        if key[2] and key in self._constants:
            return self._constants[key]
        value = walk.add_initializer(self.graph, self.fresh(base), content)
        if key[2]:
            self._constants[key] = value
        return value

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        *,
        base: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        attributes: Mapping[str, int | float | str] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Return the result of a new node that is in no graph yet; its shape is that of `like`."""
        node = ir.node(op, inputs, attributes or {}, domain=domain, name=self.fresh(f"{base}_{op}"))
        result = node.outputs[0]
        result.name = self.fresh(base)
        result.type = ir.TensorType(dtype)
        result.shape = None if like.shape is None else like.shape.copy()
        return result

    def insert(self, values: Sequence[ir.Value], after: ir.Value | None) -> None:
        """Put the makers of `values` behind the maker of `after`, or first when nothing makes it."""
        nodes = [maker for value in values if (maker := value.producer()) is not None]
        anchor = None if after is None else after.producer()
        if anchor is not None:
            self.graph.insert_after(anchor, nodes)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.extend(nodes)

    def dequantize(
        self, q: ir.Value, params: QuantParams, like: ir.Value, base: str, *, zero: bool = False
    ) -> ir.Value:
        """Return the DequantizeLinear of an integer value.

        A zero point of 0 is written only on demand (`zero`).
        """
        scale = self.constant(np.asarray(params.scale, np.float32), f"{base}_scale")
        inputs: list[ir.Value | None] = [q, scale]
        if zero or params.zero_point.any():
            assert q.dtype is not None, f"{q.name} has no type"
            zeros = params.zero_point.astype(q.dtype.numpy())
            inputs.append(self.constant(zeros, f"{base}_zero"))
        spec = params.spec
        attributes = {} if spec.axis is None else {"axis": spec.axis}
        if spec.block_size:
            attributes["block_size"] = spec.block_size
        return self.node("DequantizeLinear", inputs, like, base=f"{base}_dq", attributes=attributes)

    def fake_quantize(self, x: ir.Value, params: QuantParams, rank: int, base: str) -> ir.Value:
        """Return QONNX Quant (BipolarQuant for one bit) of a float value."""
        spec = params.spec
        self.graph.opset_imports.setdefault(QONNX_DOMAIN, 1)
        scale = self.constant(spread(params.scale, spec, rank), f"{base}_scale")
        if spec.scheme is Scheme.BIPOLAR:
            return self.node("BipolarQuant", [x, scale], x, base=f"{base}_q", domain=QONNX_DOMAIN)
        zero = self.constant(spread(params.zero_point, spec, rank), f"{base}_zero")
        bits = self.constant(np.float32(spec.bits), f"{base}_bits")
        attributes = {
            "signed": int(spec.signed),
            "narrow": int(spec.narrow),
            "rounding_mode": spec.rounding.value,
        }
        return self.node(
            "Quant", [x, scale, zero, bits], x, base=f"{base}_q", domain=QONNX_DOMAIN, attributes=attributes
        )


def spread(array: Array, spec: QuantSpec, rank: int) -> npt.NDArray[np.float32]:
    """Return per-channel numbers as float32 in a shape that broadcasts over a tensor of `rank`."""
    if spec.axis is None:
        return np.asarray(array, np.float32).reshape(())
    shape = [1] * rank
    shape[spec.axis] = -1
    return np.asarray(array, np.float32).reshape(shape)
