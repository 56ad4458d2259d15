"""One view of the layers that compute y = W x + b, and per-channel affine maps folded into them.

For an output channel m and input channels i, Conv, ConvTranspose, Gemm and MatMul all compute
`y[m] = sum_i W[m, i] x[i] + c[m]`. Hence

- after it, `a[m] y[m] + b[m]` has weights `a[m] W[m, i]` and bias `a[m] c[m] + b[m]`;
- before it, `x[i] = a[i] u[i] + b[i]` gives weights `W[m, i] a[i]` and bias `c[m] + sum_i W[m, i] b[i]`,
  the latter only where every x that the sum sees is really there: padding would be zero, not b.

New weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.walk import (
    add_initializer,
    attribute,
    constant,
    drop_unused_initializer,
    int_attribute,
    ints_attribute,
    remove_chain,
    replace_value,
    unique_name,
)
from .common import is_op, note_origin, rank

Floats = npt.NDArray[np.float64]

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16}


@dataclass(frozen=True)
class Linear:
    """A layer with constant weights.

    Attributes:
        weight: W with axes [out, in per group, *window] for every kind, groups along `out`.
        bias: c, [out]; zeros where the layer has none.
        groups: number of groups; input channel i of output m is `(m // (out / groups)) * in + i`.
    """

    node: ir.Node
    weight: Floats
    bias: Floats
    groups: int = 1

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        """Number of input channels, those of all groups together."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def channels_last(self) -> bool:
        """Whether channels are the last axis of input and output (else axis 1)."""
        return self.node.op_type in ("Gemm", "MatMul")


def read_linear(node: ir.Node) -> Linear | str:
    """Return the view of a layer, or the reason why its weights cannot be changed."""
    weight = node.inputs[1]
    if weight is None or (array := constant(weight)) is None:
        return "the weight is not constant"
    if weight.dtype not in _FLOATS:
        return f"the weight is {weight.dtype}"
    if weight.is_graph_output():
        return f"weight {weight.name!r} is also a graph output"
    if len(weight.uses()) > 1:
        return f"weight {weight.name!r} is shared by {len(weight.uses())} uses"
    if array.ndim < 2 or (node.op_type == "MatMul" and array.ndim != 2):
        return f"the weight has {array.ndim} axes"
    groups = int_attribute(node, "group", 1)
    canonical = _to_canonical(node, array.astype(np.float64), groups)
    bias = _read_bias(node, canonical.shape[0])
    return bias if isinstance(bias, str) else Linear(node, canonical, bias, groups)


def _read_bias(node: ir.Node, channels: int) -> Floats | str:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    array = constant(value)
    if array is None:
        return "the bias is not constant"
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != channels):
        return f"the bias of shape {list(array.shape)} is not one per channel"
    beta = float(_float(node, "beta", 1.0))
    return np.asarray(np.broadcast_to(array.astype(np.float64).reshape(-1) * beta, (channels,)))


def _float(node: ir.Node, name: str, default: float) -> float:
    value = attribute(node, name, default)
    assert isinstance(value, int | float)
    return float(value)


def _to_canonical(node: ir.Node, array: Floats, groups: int) -> Floats:
    """Bring the weights of any kind of layer to [out, in per group, *window]."""
    if node.op_type == "Conv":
        return array
    if node.op_type == "ConvTranspose":
        return _swap_transposed(array, groups)
    if node.op_type == "Gemm":
        transposed = int_attribute(node, "transB", 0) == 1
        return (array if transposed else array.T) * _float(node, "alpha", 1.0)
    return array.T


def _from_canonical(node: ir.Node, weight: Floats, groups: int) -> Floats:
    if node.op_type == "Conv":
        return weight
    if node.op_type == "ConvTranspose":
        return _swap_transposed(weight, groups)
    if node.op_type == "Gemm" and int_attribute(node, "transB", 0) == 1:
        return weight
    return weight.T


def _swap_transposed(array: Floats, groups: int) -> Floats:
    """Exchange ConvTranspose's [groups * in, out, *w] and [groups * out, in, *w]; its own inverse."""
    first, second, *window = array.shape
    split = array.reshape(groups, first // groups, second, *window)
    return np.asarray(split.swapaxes(1, 2).reshape(groups * second, first // groups, *window))


def scaled_output(layer: Linear, scale: Floats, shift: Floats) -> Linear:
    """Return the layer followed by `scale * y + shift`; both arrays are [out]."""
    columns = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return Linear(layer.node, layer.weight * columns, layer.bias * scale + shift, layer.groups)


def scaled_input(layer: Linear, scale: Floats, shift: Floats) -> Linear | str:
    """Return the layer on inputs `scale * u + shift` ([in] each), or the reason why it has no such form."""
    if shift.any() and _pads(layer.node):
        return "a shift before a padded convolution: padding is zero after the shift, not before"
    if shift.any() and layer.node.op_type == "ConvTranspose":
        return "a shift before ConvTranspose does not reach all outputs alike"
    if layer.node.op_type == "Gemm" and int_attribute(layer.node, "transA", 0):
        return "the input is transposed (transA)"
    per_output = _per_output(layer, scale)
    weight = layer.weight * per_output
    added = (layer.weight * _per_output(layer, shift)).reshape(layer.out_channels, -1).sum(axis=1)
    return Linear(layer.node, weight, layer.bias + added, layer.groups)


def _per_output(layer: Linear, values: Floats) -> Floats:
    """Arrange values of input channels, [in], as [out, in per group, 1, ...]."""
    per_group = values.reshape(layer.groups, -1)
    rows = np.repeat(per_group, layer.out_channels // layer.groups, axis=0)
    return np.asarray(rows.reshape(*rows.shape, *[1] * (layer.weight.ndim - 2)))


def _pads(node: ir.Node) -> bool:
    if node.op_type in ("Gemm", "MatMul"):
        return False
    if attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return True
    return any(ints_attribute(node, "pads"))


def why_not_written(layer: Linear, new: Linear) -> str | None:
    """Return why `new` cannot take the place of `layer` in the graph, None when it can."""
    dtype = layer.node.inputs[1].dtype if layer.node.inputs[1] is not None else None
    assert dtype is not None
    with np.errstate(over="ignore"):
        arrays = [array.astype(dtype.numpy()) for array in (new.weight, new.bias)]
    if not all(np.isfinite(array).all() for array in arrays):
        return "the folded weights are not finite"
    if layer.node.op_type == "MatMul" and new.bias.any() and rank(layer.node.inputs[0]) != 2:
        return "a bias after MatMul of other than two axes"
    return None


def write_linear(model: ir.Model, new: Linear) -> ir.Node:
    """Put new weights (and bias) into the node; a MatMul that gets a bias becomes a Gemm. Return the node."""
    node = new.node
    old_weight = node.inputs[1]
    assert old_weight is not None
    assert old_weight.dtype is not None
    dtype = old_weight.dtype.numpy()
    array = np.ascontiguousarray(_from_canonical(node, new.weight, new.groups).astype(dtype))
    _set_constant(model, node, 1, array)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if node.op_type == "MatMul" and new.bias.any():
        node = _to_gemm(node)
    if node.op_type != "MatMul" and (has_bias or new.bias.any()):
        _set_constant(model, node, 2, new.bias.astype(dtype))
    if node.op_type == "Gemm":
        node.attributes.pop("alpha", None)
        node.attributes.pop("beta", None)
    return node


def _set_constant(model: ir.Model, node: ir.Node, index: int, array: npt.NDArray[np.generic]) -> None:
    """Give `node` a new constant of its own as input `index`."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    base = f"{node.name or node.outputs[0].name}_{'weight' if index == 1 else 'bias'}"
    if old is not None and old.name:
        base = old.name.removesuffix("_folded")
    home = old.graph if old is not None and old.is_initializer() else node.graph
    assert home is not None, "a node without a graph"
    node.replace_input_with(index, add_initializer(home, unique_name(model, f"{base}_folded"), array))
    if old is not None:
        drop_unused_initializer(old)


def _to_gemm(node: ir.Node) -> ir.Node:
    """Replace a MatMul of two-axis operands by a Gemm that keeps its names."""
    assert node.graph is not None, "a node without a graph"
    gemm = ir.node("Gemm", list(node.inputs), name=node.name, metadata_props=dict(node.metadata_props))
    old, new = node.outputs[0], gemm.outputs[0]
    new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
    node.graph.insert_after(node, gemm)
    replace_value(old, new)
    remove_chain(node)
    return gemm


def absorb_after(kept: ir.Node, merged: ir.Node) -> None:
    """Let `kept` make the output of `merged`, the node after it, and remove `merged`."""
    note_origin(kept, merged)
    old, new = merged.outputs[0], kept.outputs[0]
    replace_value(old, new)
    remove_chain(merged)


def absorb_before(merged: ir.Node, data: ir.Value, kept: ir.Node) -> None:
    """Let `kept` read `data` instead of the output of `merged`, the node before it; remove `merged`."""
    note_origin(kept, merged)
    kept.replace_input_with(0, data)
    remove_chain(merged)


def layer_before(value: ir.Value | None) -> ir.Node | str:
    """Return the linear layer whose output is `value` and goes nowhere else, or why there is none."""
    node = None if value is None else value.producer()
    if node is None or value is None or not is_op(node, *LINEAR_OPS):
        return "no Conv, ConvTranspose, Gemm or MatMul before it"
    if value.is_graph_output():
        return f"{value.name!r} is also a graph output"
    if len(value.uses()) > 1:
        return f"{value.name!r} has {len(value.uses())} readers"
    return node


def layer_after(value: ir.Value) -> ir.Node | str:
    """Return the linear layer that alone reads `value`, as its data input, or why there is none."""
    if value.is_graph_output():
        return f"{value.name!r} is also a graph output"
    uses = list(value.uses())
    if len(uses) != 1:
        return f"{value.name!r} has {len(uses)} readers"
    node, index = uses[0]
    if not is_op(node, *LINEAR_OPS) or index != 0:
        return "no Conv, ConvTranspose, Gemm or MatMul after it"
    if node.graph is not value.graph:
        return "the layer after it is in a body of its own"
    return node
