"""One view of the layers that compute y = W x + b, and per-channel affine maps folded into them.

For an output channel m and input channels i, Conv, ConvTranspose, Gemm and MatMul all compute
`y[m] = sum_i W[m, i] x[i] + c[m]`. Hence

- after it, `a[m] y[m] + b[m]` has weights `a[m] W[m, i]` and bias `a[m] c[m] + b[m]`;
- before it, `x[i] = a[i] u[i] + b[i]` gives weights `W[m, i] a[i]` and bias `c[m] + sum_i W[m, i] b[i]`,
  the latter only where every x that the sum sees is really there: padding would be zero, not b.

New weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.walk import (
    add_initializer,
    attribute,
    constant,
    constant_tensor,
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
        bias: c, [out]; zeros where the layer has none.
        out_channels: number of output channels.
        in_channels: number of input channels, those of all groups together.
        groups: number of groups; input channel i of output m is `(m // (out / groups)) * in + i`.
        new_weight: new W as `weight` has it, None while the weights are as in the graph.
    """

    node: ir.Node
    bias: Floats
    out_channels: int
    in_channels: int
    groups: int = 1
    new_weight: Floats | None = None

    @property
    def weight(self) -> Floats:
        """W with axes [out, in per group, *window] for every kind of layer, groups along `out`.

        Reads the weights, which a mere shift of the output need not.
        """
        if self.new_weight is not None:
            return self.new_weight
        array = constant(self.node.inputs[1])
        assert array is not None, "read_linear has seen a constant"
        return _to_canonical(self.node, array.astype(np.float64), self.groups)

    @property
    def channels_last(self) -> bool:
        """Whether channels are the last axis of input and output (else axis 1)."""
        return self.node.op_type in ("Gemm", "MatMul")


def read_linear(node: ir.Node) -> Linear | str:
    """Return the view of a layer, or the reason why its weights cannot be changed. Reads no weights."""
    weight = node.inputs[1]
    tensor = None if weight is None else constant_tensor(weight)
    if weight is None or tensor is None:
        return "the weight is not constant"
    if tensor.dtype not in _FLOATS:
        return f"the weight is {tensor.dtype}"
    if weight.is_graph_output():
        return f"weight {weight.name!r} is also a graph output"
    if len(weight.uses()) > 1:
        return f"weight {weight.name!r} is shared by {len(weight.uses())} uses"
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    if len(shape) < 2 or (node.op_type == "MatMul" and len(shape) != 2):
        return f"the weight has {len(shape)} axes"
    groups = int_attribute(node, "group", 1)
    outputs, inputs = _channels(node, shape, groups)
    bias = _read_bias(node, outputs)
    return bias if isinstance(bias, str) else Linear(node, bias, outputs, inputs, groups)


def _channels(node: ir.Node, shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    first, second = shape[:2]
    if node.op_type == "Conv":
        return first, second * groups
    if node.op_type == "ConvTranspose":
        return second * groups, first
    return (first, second) if int_attribute(node, "transB", 0) else (second, first)


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
    shifted = replace(layer, bias=layer.bias * scale + shift)
    if (scale == 1).all():
        return shifted
    weight = layer.weight
    return replace(shifted, new_weight=weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))


def scaled_input(layer: Linear, scale: Floats, shift: Floats) -> Linear | str:
    """Return the layer on inputs `scale * u + shift` ([in] each), or the reason why it has no such form."""
    if shift.any() and _pads(layer.node):
        return "a shift before a padded convolution: padding is zero after the shift, not before"
    if shift.any() and layer.node.op_type == "ConvTranspose":
        return "a shift before ConvTranspose does not reach all outputs alike"
    if layer.node.op_type == "Gemm" and int_attribute(layer.node, "transA", 0):
        return "the input is transposed (transA)"
    weight = layer.weight
    added = (weight * _per_output(layer, shift, weight.ndim)).reshape(layer.out_channels, -1).sum(axis=1)
    return replace(layer, bias=layer.bias + added, new_weight=weight * _per_output(layer, scale, weight.ndim))


def _per_output(layer: Linear, values: Floats, axes: int) -> Floats:
    """Arrange values of input channels, [in], as [out, in per group, 1, ...] with that many axes."""
    per_group = values.reshape(layer.groups, -1)
    rows = np.repeat(per_group, layer.out_channels // layer.groups, axis=0)
    return np.asarray(rows.reshape(*rows.shape, *[1] * (axes - 2)))


def _pads(node: ir.Node) -> bool:
    if node.op_type in ("Gemm", "MatMul"):
        return False
    if attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return True
    return any(ints_attribute(node, "pads"))


def why_not_written(new: Linear) -> str | None:
    """Return why `new` cannot take the place of the layer in the graph, None when it can."""
    dtype = _dtype(new)
    arrays = [new.bias] if new.new_weight is None else [new.bias, new.new_weight]
    with np.errstate(over="ignore"):
        finite = all(np.isfinite(array.astype(dtype)).all() for array in arrays)
    if not finite:
        return "the folded weights are not finite"
    if new.new_weight is not None and _loses_integers(new):
        return "the weights are integers, quantized already"
    if new.node.op_type == "MatMul" and new.bias.any() and rank(new.node.inputs[0]) != 2:
        return "a bias after a MatMul whose input has other than two axes"
    return None


def _loses_integers(new: Linear) -> bool:
    """Say whether integer weights (bipolar, ternary, ...) would become others; backends live on them."""
    assert new.new_weight is not None
    old = replace(new, new_weight=None).weight
    few = old.reshape(-1)[:1024]
    if (few != np.rint(few)).any():  # most weights show at once that they are no integers
        return False
    return bool((old == np.rint(old)).all()) and not bool((new.new_weight == np.rint(new.new_weight)).all())


def _dtype(layer: Linear) -> np.dtype[np.generic]:
    weight = layer.node.inputs[1]
    assert weight is not None
    assert weight.dtype is not None
    return np.dtype(weight.dtype.numpy())


def write_linear(model: ir.Model, new: Linear) -> ir.Node:
    """Put new weights (and bias) into the node; a MatMul that gets a bias becomes a Gemm. Return the node."""
    node, dtype = new.node, _dtype(new)
    if new.new_weight is not None:
        weight = _from_canonical(node, new.new_weight, new.groups)
        _set_constant(model, node, 1, np.array(weight, dtype=dtype, order="C"))
        node.attributes.pop("alpha", None)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if node.op_type == "MatMul" and new.bias.any():
        node = _to_gemm(node)
    if node.op_type != "MatMul" and (has_bias or new.bias.any()):
        _set_constant(model, node, 2, new.bias.astype(dtype))
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


def write_after(model: ir.Model, merged: ir.Node, new: Linear) -> str | None:
    """Write `new`, the layer together with `merged` after it, and take `merged` out; or say why not."""
    reason = why_not_written(new)
    if reason is None:
        kept = write_linear(model, new)
        note_origin(kept, merged)
        replace_value(merged.outputs[0], kept.outputs[0])
        remove_chain(merged)
    return reason


def write_before(model: ir.Model, merged: ir.Node, data: ir.Value | None, new: Linear) -> str | None:
    """Write `new`, the layer together with `merged` before it, reading `data`; or say why not."""
    reason = why_not_written(new)
    if reason is None:
        kept = write_linear(model, new)
        note_origin(kept, merged)
        kept.replace_input_with(0, data)
        remove_chain(merged)
    return reason


def layer_before(value: ir.Value | None) -> ir.Node | str | None:
    """Return the linear layer that makes `value` for one reader only, why it cannot be used, or None."""
    node = None if value is None else value.producer()
    if node is None or value is None or not is_op(node, *LINEAR_OPS):
        return None
    if value.is_graph_output():
        return f"{value.name!r} is also a graph output"
    if len(value.uses()) > 1:
        return f"{value.name!r} has {len(value.uses())} readers"
    return node


def layer_after(value: ir.Value) -> ir.Node | str | None:
    """Return the linear layer that alone reads `value` as its data, why it cannot be used, or None."""
    layers = [node for node, index in value.uses() if is_op(node, *LINEAR_OPS) and index == 0]
    if not layers:
        return None
    if value.is_graph_output():
        return f"{value.name!r} is also a graph output"
    if len(value.uses()) > 1:
        return f"{value.name!r} has {len(value.uses())} readers"
    return layers[0] if layers[0].graph is value.graph else "the layer after it is in a body of its own"
