"""Binary layers: data and weights are two numbers +s and -s each, so that a product counts bits.

    BipolarQuant [-> MaxPool | Identity | Flatten] -> Conv | Gemm | MatMul by weights of one size per row
        [-> operators per channel -> BipolarQuant]

Sums are exact. What follows a product up to the next BipolarQuant becomes one threshold per channel: the
reference itself says at which sum its result changes sign, so bits agree with it wherever they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.quant import QONNX_DOMAIN
from ....compiler.ir.walk import Names, int_attribute, ints_attribute, static_shape
from ....compiler.ir.windows import pads_of
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_expression, constant_of
from ..schedules.lowbit_binary import Shape, pack_weights
from .lowbit_thresholds import Thresholds, chain_behind, thresholds_of
from .lowbit_written import DOMAIN, initializer

PACK, POOL, PRODUCT = "BinaryPack", "BinaryPool", "BinaryProduct"

_REALS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class _Bits:
    """A value that is bits: [N, H, W, words] for an image of [N, C, H, W].

    Attributes:
        value: of the words.
        scale: what a bit of 1 stands for; a 0 stands for the negative.
        image: C, H, W.
    """

    value: ir.Value
    scale: float
    image: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights [M, C, KH, KW]: `where(positive, scale, -scale)` with one scale per output channel."""

    positive: npt.NDArray[np.bool_]
    scale: npt.NDArray[np.float64]


def use_binary_layers(model: ir.Model) -> int:
    """Replace products of bits in place; returns how many."""
    layers = _Layers(model)
    replaced = sum(layers.replace(node) for node in list(model.graph))
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


class _Layers:
    """Replaces product by product and remembers which values are there as bits."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._bits: dict[ir.Value, _Bits | None] = {}

    def replace(self, node: ir.Node) -> bool:
        """Replace a product of bits, with what makes them where it is not there yet."""
        if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
            return False
        weights = _weights(node)
        bits = None if weights is None else self._data(node)
        if weights is None or bits is None or node.outputs[0].dtype not in _REALS:
            return False
        if node.op_type != "Conv":
            weights = _as_image(weights, bits.image)
        shape = _shape(node, bits, weights)
        bias = _bias(node, len(weights.scale))
        if shape is None or bias is None:
            return False
        real = weights.scale * bits.scale
        chain = chain_behind(node.outputs[0])
        if chain and self._only_products(chain[-1].outputs[0]):
            self._emit_bits(node, chain, shape, bits, weights, thresholds_of(chain, real, bias, shape))
        else:
            self._emit_reals(node, shape, bits, weights, real, bias)
        return True

    def _data(self, node: ir.Node) -> _Bits | None:
        """Return what a product multiplies; a row of numbers may be an image that was flattened."""
        value = node.inputs[0]
        if node.op_type != "Conv" and value is not None and (source := _unflattened(value)) is not None:
            found = self._of(source)
            if found is not None:
                return found
        return None if value is None else self._of(value)

    def _of(self, value: ir.Value) -> _Bits | None:
        if value not in self._bits:
            self._bits[value] = self._find(value)
        return self._bits[value]

    def _find(self, value: ir.Value) -> _Bits | None:
        node, sizes = value.producer(), static_shape(value)
        if node is None or sizes is None or len(sizes) not in (2, 4) or not all(sizes):
            return None
        image = (sizes[1], sizes[2], sizes[3]) if len(sizes) == 4 else (sizes[1], 1, 1)
        if node.op_type == "Identity" and node.inputs[0] is not None:
            return self._of(node.inputs[0])
        if node.op_type == "MaxPool" and node.domain == "":
            return self._pool(node, image)
        source = node.inputs[0]
        scale = _bipolar_scale(node)
        if scale is None or source is None or source.dtype not in _REALS:
            return None
        new = self._add(node, PACK, [source], {}, ir.DataType.UINT32, _words(sizes[0], image))
        return _Bits(new, scale, image)

    def _pool(self, node: ir.Node, image: tuple[int, int, int]) -> _Bits | None:
        source = None if node.inputs[0] is None else self._of(node.inputs[0])
        if source is None or len(node.outputs) > 1 or len(ints_attribute(node, "kernel_shape")) != 2:
            return None
        kernel, ones = ints_attribute(node, "kernel_shape"), (1, 1)
        strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
        pads = pads_of(node, kernel, strides, dilations, source.image[1:])
        attributes = {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads[:2]}
        count = static_shape(node.outputs[0])
        assert count is not None, "a pool without a shape"
        sizes = _words(count[0], image)
        new = self._add(node, POOL, [source.value], attributes, ir.DataType.UINT32, sizes)
        return _Bits(new, source.scale, image)

    def _only_products(self, value: ir.Value) -> bool:
        """Say whether all readers of a value will read bits."""
        if value.is_graph_output() or not value.consumers():
            return False
        for use in value.uses():
            node = use.node
            if node.op_type in ("MaxPool", "Identity", "Flatten", "Reshape") and node.domain == "":
                flat = node.op_type in ("Flatten", "Reshape")
                if use.idx or (flat and _unflattened(node.outputs[0]) is not value):
                    return False
                if not self._only_products(node.outputs[0]):
                    return False
            elif use.idx or not _is_binary(node, value):
                return False
        return True

    def _add(
        self, before: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object],
        kind: ir.DataType, sizes: Sequence[int],
    ) -> ir.Value:  # fmt: skip
        """Add a node before another one."""
        given = ir.convenience.convert_attributes(attributes)  # type: ignore[arg-type]
        name = self._names.fresh(f"{before.outputs[0].name}_bits")
        node = ir.Node(DOMAIN, op, inputs, given, name=name)
        value = node.outputs[0]
        value.name, value.dtype, value.shape = self._names.fresh(f"{name}_value"), kind, ir.Shape(sizes)
        self._graph.insert_before(before, node)
        return value

    def _inputs(
        self, node: ir.Node, bits: _Bits, positive: npt.NDArray[np.bool_], shape: Shape, *arrays: np.ndarray
    ) -> list[ir.Value | None]:
        packed = pack_weights(positive.transpose(0, 2, 3, 1), shape.vector)
        base = f"{node.outputs[0].name}_binary"
        constants = (initializer(self._graph, self._names.fresh(base), a) for a in (packed, *arrays))
        return [bits.value, *constants]

    def _emit_bits(
        self, node: ir.Node, chain: Sequence[ir.Node], shape: Shape, bits: _Bits, weights: _Weights,
        found: Thresholds,
    ) -> None:  # fmt: skip
        positive = weights.positive ^ found.falls[:, None, None, None]
        shape = Shape(**{**shape.__dict__, "bits": True, "bias": False})
        inputs = self._inputs(node, bits, positive, shape, found.lowest)
        image = (shape.outputs, shape.out_height, shape.out_width)
        sizes = _words(shape.count, image)
        value = self._add(node, PRODUCT, inputs, _attributes(shape), ir.DataType.UINT32, sizes)
        scale = _bipolar_scale(chain[-1])
        assert scale is not None, "a chain that ends in no quantizer"
        self._bits[chain[-1].outputs[0]] = _Bits(value, scale, image)

    def _emit_reals(
        self, node: ir.Node, shape: Shape, bits: _Bits, weights: _Weights, real: npt.NDArray[np.float64],
        bias: npt.NDArray[np.float64],
    ) -> None:  # fmt: skip
        shape = Shape(**{**shape.__dict__, "bits": False, "bias": bool(bias.any())})
        inputs = self._inputs(node, bits, weights.positive, shape, real, *([bias] * shape.bias))
        output = node.outputs[0]
        assert output.dtype is not None, "a product without a type"
        sizes = [int(size) for size in output.shape or ()]  # type: ignore[arg-type]
        value = self._add(node, PRODUCT, inputs, _attributes(shape), output.dtype, sizes)
        new = value.producer()
        assert new is not None, "a new value without its node"
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], [], [output], [value])


def _attributes(shape: Shape) -> dict[str, object]:
    return {key: int(value) if isinstance(value, bool) else value for key, value in shape.__dict__.items()}


def _words(count: int, image: tuple[int, int, int]) -> tuple[int, int, int, int]:
    return count, image[1], image[2], -(-image[0] // 32)


def _bipolar_scale(node: ir.Node) -> float | None:
    """Return the scale of a BipolarQuant with one, else None."""
    if (node.domain, node.op_type) != (QONNX_DOMAIN, "BipolarQuant"):
        return None
    scale = constant_expression(node.inputs[1])
    return float(scale.reshape(())) if scale is not None and scale.size == 1 and scale.min() > 0 else None


def _unflattened(value: ir.Value) -> ir.Value | None:
    """Return the image whose channels, rows and columns became one axis."""
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in ("Flatten", "Reshape"):
        return None
    source = node.inputs[0]
    sizes, flat = (None if v is None else static_shape(v) for v in (source, value))
    if sizes is None or flat is None or len(sizes) not in (2, 4) or len(flat) != 2 or sizes[0] != flat[0]:
        return None
    return source


# --- weights ----------------------------------------------------------------------------------------


def _is_binary(node: ir.Node, value: ir.Value) -> bool:
    """Say whether a node that reads `value` is a product by binary weights."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    weights = _weights(node)
    return weights is not None and _bias(node, len(weights.scale)) is not None


def _weights(node: ir.Node) -> _Weights | None:
    if node.op_type == "Conv" and int_attribute(node, "group", 1) != 1:
        return None
    if node.op_type == "Gemm" and (
        int_attribute(node, "transA", 0) or any(float_attribute(node, k, 1.0) != 1 for k in ("alpha", "beta"))
    ):
        return None
    array = _values(node.inputs[1])
    if array is None or array.ndim != (4 if node.op_type == "Conv" else 2) or not array.size:
        return None
    if node.op_type != "Conv":
        array = array if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else array.T
        array = array[:, :, None, None]
    size = np.abs(array).astype(np.float64)
    scale = size[:, :1, :1, :1]
    if not bool((size == scale).all()) or not bool((scale > 0).all()):
        return None
    return _Weights(array > 0, scale.reshape(-1))


def _values(value: ir.Value | None) -> npt.NDArray[np.number] | None:
    """Return constant weights, quantized to two values or not, maybe transposed."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Transpose" and node.domain == "":
        found = _values(node.inputs[0])
        order = ints_attribute(node, "perm")
        return None if found is None else found.transpose(order or None)
    if node is None or (scale := _bipolar_scale(node)) is None:
        return constant_of(value) if constant_of(value) is not None else constant_expression(value)
    found = constant_of(node.inputs[0])
    return None if found is None else np.where(found >= 0, np.float32(scale), -np.float32(scale))


def _as_image(weights: _Weights, image: tuple[int, int, int]) -> _Weights:
    """Return a matrix by flattened images as weights of a window that is the whole image."""
    return _Weights(weights.positive.reshape(-1, *image), weights.scale)


def _bias(node: ir.Node, rows: int) -> npt.NDArray[np.float64] | None:
    """Return what is added per output channel; None where that is not constant."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(rows)
    array = constant_expression(value)
    if array is None or array.size not in (1, rows) or (array.ndim and array.size != array.shape[-1]):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (rows,))


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return numbers[0], numbers[1]


def _shape(node: ir.Node, bits: _Bits, weights: _Weights) -> Shape | None:
    sizes, (channels, height, width) = static_shape(node.outputs[0]), bits.image
    outputs, depth, *kernel = weights.positive.shape
    if sizes is None or depth != channels or len(sizes) != (4 if node.op_type == "Conv" else 2):
        return None
    pads, strides, dilations = (0, 0), (1, 1), (1, 1)
    if node.op_type == "Conv":
        strides, dilations = (_pair(ints_attribute(node, name, (1, 1))) for name in ("strides", "dilations"))
        pads = _pair(pads_of(node, kernel, strides, dilations, (height, width)))
    out_height, out_width = sizes[2:] if len(sizes) == 4 else (1, 1)
    kind = node.outputs[0].dtype
    assert kind is not None, "a product without a type"
    return Shape(
        sizes[0], height, width, channels, outputs, out_height, out_width, _pair(kernel), strides,
        pads, dilations, False, False,
        kind.numpy().name,
    )  # fmt: skip
