"""Writing the constants of a plan: weights, tables and biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.pages import drop_pages
from ...compiler.ir.quant import QuantParams, Scheme, container, dequantize_array, quantize_array
from .emit import Emitter
from .plan import Decision, Site
from .scales import weight_params

Integers: TypeAlias = npt.NDArray[np.integer]
Floats: TypeAlias = npt.NDArray[np.floating]

_CHUNK = 1 << 17  # weights quantized at a time


def params_of(decision: Decision, array: Floats) -> QuantParams:
    """Return the numbers of a decision: those of the plan, or from the constant itself (blocks)."""
    if decision.scale is None or decision.zero_point is None:
        # So few levels that the largest value of a block should not decide what they are.
        return weight_params(array, decision.spec, "mse" if decision.spec.bits == 2 else "minmax")
    shape = () if decision.spec.axis is None else (-1,)
    scale = np.asarray(decision.scale, np.float32).reshape(shape)
    return QuantParams(decision.spec, scale, np.asarray(decision.zero_point, np.int64).reshape(shape))


def is_stored_as_integers(decision: Decision) -> bool:
    """Say whether ONNX itself has the format: 8 bits, or in blocks; else QONNX Quant carries it."""
    if decision.spec.scheme is Scheme.BIPOLAR:
        return False
    return decision.spec.bits == 8 or (decision.spec.bits in (2, 4) and decision.spec.block_size > 0)


def quantize_weight(array: Floats, params: QuantParams) -> Integers:
    """Return `quantize_array(array, params)`, some rows at a time, to save memory."""
    spec = params.spec
    if array.size <= _CHUNK or spec.block_size:
        return quantize_array(array, params)
    rows = max(1, _CHUNK * len(array) // array.size)
    result = np.empty(array.shape, container(spec))
    for start in range(0, len(array), rows):
        part = slice(start, start + rows)
        own = params
        if spec.axis == 0:
            own = QuantParams(spec, params.scale[part], params.zero_point[part])
        result[part] = quantize_array(array[part], own)
    return result


class ConstantWriter:
    """Replaces constants by their quantized form; constants that several sites share are written once."""

    def __init__(self, out: Emitter, integers: Mapping[Site, Integers]) -> None:
        self._out = out
        self._integers = integers
        self._done: dict[tuple[str, Decision, bool], ir.Value] = {}
        self._sources: dict[ir.Value, ir.Value | None] = {}
        self._bias_scales: dict[tuple[ir.Value, ir.Value], ir.Value] = {}

    def weight(self, node: ir.Node, index: int, decision: Decision) -> None:
        """Make one operand read the quantized constant."""
        source = node.inputs[index]
        assert source is not None, f"{node.name} has no operand {index}"
        # onnxruntime fuses these two only when their operands have explicit zero points.
        zero = node.op_type in ("Gemm", "MatMul") and decision.spec.bits == 8
        key = (decision.value, decision, zero)
        if key not in self._done:
            chosen = self._integers.get(Site.read(node.name or "", index))
            self._done[key] = self._write(source, decision, chosen, zero)
        node.replace_input_with(index, self._done[key])
        self._note(source, self._done[key])

    def table(self, node: ir.Node, decision: Decision) -> None:
        """Gather integers and dequantize the result, which keeps its name."""
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None, f"{node.name} has no table"
        if not is_stored_as_integers(decision):
            self.weight(node, 0, decision)
            return
        array = _floats(source)
        params = params_of(decision, array)
        stored = self._out.constant(quantize_weight(array, params), f"{source.name}_int")
        node.replace_input_with(0, stored)
        behind = self._out.dequantize(result, _on_last_axis(params), result, str(result.name))
        self._out.insert([behind], result)
        name = str(result.name)
        walk.replace_value(result, behind)
        walk.rename(result, self._out.fresh(f"{name}_int"))
        result.type = ir.TensorType(stored.dtype or ir.DataType.INT8)
        self._note(source, None)

    def _write(self, source: ir.Value, decision: Decision, chosen: Integers | None, zero: bool) -> ir.Value:
        array = _floats(source)
        params = params_of(decision, array)
        q = quantize_weight(array, params) if chosen is None else chosen.astype(container(decision.spec))
        base = str(source.name)
        if is_stored_as_integers(decision):
            # Two bits lie in four: no onnxruntime reads the type INT2 yet.
            narrow = q.astype(ml_dtypes.int4) if decision.spec.bits <= 4 else q
            stored = self._out.constant(narrow, f"{base}_int")
            result = self._out.dequantize(stored, params, stored, base, zero=zero)
        else:
            # Quant gives these values back exactly.
            real = self._out.constant(np.asarray(_real(q, params), np.float32), f"{base}_grid")
            result = self._out.fake_quantize(real, params, array.ndim, base)
        self._out.insert([result], None)
        drop_pages(walk.constant_tensor(source))
        return result

    def bias(self, node: ir.Node, holder: ir.Node, index: int, shift: Floats | None) -> None:
        """Store a bias as int32 in units of input scale times weight scale, which the graph multiplies.

        `holder` reads it: the layer itself, or the Add behind a MatMul.
        """
        source = holder.inputs[index]
        assert source is not None, f"{node.name} has no bias"
        x_scale, w_scale = (_scale_of(node.inputs[i]) for i in (0, 1))
        unit = self._bias_unit(x_scale, w_scale)
        real = _floats(source).astype(np.float64).reshape(-1)
        if shift is not None:
            real = real + shift
        step = np.asarray(walk.constant(x_scale)) * np.asarray(walk.constant(w_scale))
        limits = np.iinfo(np.int32)
        q = np.clip(np.rint(real / step.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        stored = self._out.constant(q, f"{source.name}_int")
        attributes = {"axis": 0} if step.ndim else {}
        result = self._out.node(
            "DequantizeLinear", [stored, unit], stored, base=f"{source.name}_dq", attributes=attributes
        )
        self._out.insert([result], unit)
        holder.replace_input_with(index, result)
        self._note(source, result)

    def _bias_unit(self, x_scale: ir.Value, w_scale: ir.Value) -> ir.Value:
        key = (x_scale, w_scale)
        if key not in self._bias_scales:
            unit = self._out.node("Mul", [w_scale, x_scale], w_scale, base=f"{w_scale.name}_bias")
            self._out.insert([unit], None)
            self._bias_scales[key] = unit
        return self._bias_scales[key]

    def float_bias(self, node: ir.Node, index: int, shift: Floats) -> None:
        """Shift a bias that stays float, or add one."""
        source = node.inputs[index] if index < len(node.inputs) else None
        base = source.name if source is not None else f"{node.name}_bias"
        real = shift if source is None else _floats(source).astype(np.float64).reshape(-1) + shift
        value = self._out.constant(np.asarray(real, np.float32), f"{base}_shifted")
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        if source is not None:
            self._note(source, None)

    def _note(self, source: ir.Value, result: ir.Value | None) -> None:
        self._sources[source] = result

    def finish(self) -> None:
        """Drop constants that nothing reads any more; their replacement takes their name."""
        for source, result in self._sources.items():
            if not walk.is_unused(source):
                continue
            name, maker = source.name, source.producer()
            if maker is not None:
                walk.remove_chain(maker)
            else:
                walk.drop_unused_initializer(source)
            if result is not None and name is not None:
                walk.rename(source, None)
                walk.rename(result, name)


def _floats(value: ir.Value) -> Floats:
    array = walk.constant(value)
    assert array is not None, f"{value.name} is planned as a constant"
    return np.asarray(array, np.float32)


def _real(q: Integers, params: QuantParams) -> Floats:
    return np.asarray(dequantize_array(q, params), np.float32)


def _on_last_axis(params: QuantParams) -> QuantParams:
    """Return the params with the channel axis counted from the end, where a gathered table keeps it."""
    if params.spec.axis is None:
        return params
    return dataclasses.replace(params, spec=dataclasses.replace(params.spec, axis=-1))


def _scale_of(value: ir.Value | None) -> ir.Value:
    maker = None if value is None else value.producer()
    assert maker is not None, "a bias follows its quantized operands"
    assert maker.op_type == "DequantizeLinear", f"operand made by {maker.op_type}"
    scale = maker.inputs[1]
    assert scale is not None, f"{maker.name} has no scale"
    return scale
