"""Random quantized layers as models, for the tests of the integer semantics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]

TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}


@dataclass(frozen=True)
class Layer:
    """One quantized layer: integer input `x`, integer output `y`, and what the middle is."""

    op: str
    x: Array
    w: Array
    bias: Array | None = None
    x_scale: float = 0.02
    y_scale: float = 0.05
    w_scale: Array | None = None
    w_zero: int = 0
    x_zero: int = 0
    y_zero: int = 0
    y_type: str = "uint8"
    bias_kind: str = "int32"
    activation: str = ""
    attributes: Mapping[str, int | Sequence[int]] | None = None
    w_axis: int = 0


def model_of(layer: Layer) -> ir.Model:
    """Build DQ, DQ [, bias] -> op [-> Relu] -> Q, with `x` quantized as the graph's input.

    The bias of a MatMul is added behind it.
    """
    scale = np.asarray(0.01 if layer.w_scale is None else layer.w_scale, np.float32)
    x_scale = np.float32(layer.x_scale)
    arrays: dict[str, Array] = {
        "xs": np.asarray(x_scale),
        "xz": np.asarray(layer.x_zero, layer.x.dtype),
        "w": layer.w,
        "ws": scale,
        "ys": np.asarray(layer.y_scale, np.float32),
        "yz": np.asarray(layer.y_zero, layer.y_type),
    }
    axis = {"axis": layer.w_axis} if scale.ndim else {}
    # onnxruntime fuses a Gemm only when its weights have a zero point, be it 0
    arrays["wz"] = np.full(scale.shape, layer.w_zero, layer.w.dtype)
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], **axis),
    ]
    inputs = ["xf", "wf"]
    if layer.bias is not None:
        inputs.append("bf")
        nodes += _bias(layer, np.asarray(x_scale * scale, np.float32), arrays)
    if layer.op == "MatMul" and layer.bias is not None:
        nodes += [
            helper.make_node("MatMul", inputs[:2], ["m"], name="layer"),
            helper.make_node("Add", ["m", "bf"], ["r"]),
        ]
    else:
        nodes.append(helper.make_node(layer.op, inputs, ["r"], name="layer", **(layer.attributes or {})))
    last = "r"
    if layer.activation:
        nodes.append(helper.make_node(layer.activation, ["r"], ["a"]))
        last = "a"
    nodes.append(helper.make_node("QuantizeLinear", [last, "ys", "yz"], ["y"]))
    return _finish(layer, nodes, arrays)


def _bias(layer: Layer, unit: Array, arrays: dict[str, Array]) -> list[onnx.NodeProto]:
    assert layer.bias is not None
    if layer.bias_kind == "float":
        arrays["bf"] = (layer.bias * unit).astype(np.float32)
        return []
    arrays["b"], arrays["bs"] = layer.bias.astype(np.int32), unit
    axis = {"axis": 0} if unit.ndim else {}
    return [helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], **axis)]


def _finish(layer: Layer, nodes: list[onnx.NodeProto], arrays: Mapping[str, Array]) -> ir.Model:
    kind = TYPES[layer.x.dtype.name]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, layer.x.shape)],
        [helper.make_tensor_value_info("y", TYPES[layer.y_type], None)],
        [
            numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), name)
            for name, a in arrays.items()
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
