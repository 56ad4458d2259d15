"""Small random graphs: chains of operators on tensors of awkward sizes, in float32, float16 or int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from ...compiler.backend import Array
from ...compiler.ir.importer import import_model

KINDS = ("float32", "float16", "int8")
_ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
# Sizes around those of vectors, warps and tiles, and ones, where loops vanish.
_SIZES = (1, 1, 2, 3, 4, 5, 8, 16, 17, 24, 33, 64)
_MOST_VALUES = 30_000
_MOST_INPUTS = 6_000
_OPSET, _IR_VERSION = 22, 10


Attribute = int | float | str | Sequence[int]


class Draft:
    """A graph under construction.

    Args:
        rng: of everything random in it.
        kind: of its input; int8 puts a quantizer behind every operator.

    Attributes:
        shape: of what is computed so far.
    """

    def __init__(self, rng: np.random.Generator, kind: str) -> None:
        self.rng, self.kind = rng, kind
        self.shape = [self.size() for _ in range(int(rng.integers(2, 5)))]
        while prod(self.shape) > _MOST_INPUTS:
            self.shape[int(rng.integers(len(self.shape)))] = 1
        self.start, self._last = tuple(self.shape), "x"
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    @property
    def steps(self) -> str:
        """Its operators."""
        return " ".join(node.op_type for node in self._nodes)

    def size(self) -> int:
        """Return a size."""
        return int(self.rng.choice(_SIZES))

    def axis(self) -> int:
        """Return an axis."""
        return int(self.rng.integers(len(self.shape)))

    def weights(self, *shape: int, terms: int = 1) -> str:
        """Return the name of a new constant of the graph's floats; products of `terms` keep their size."""
        dtype = np.float16 if self.kind == "float16" else np.float32
        return self.constant((self.rng.normal(size=shape) / terms**0.5).astype(dtype))

    def constant(self, array: npt.ArrayLike) -> str:
        """Return the name of a new constant."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def quantized(self, *shape: int) -> str:
        """Return the name of dequantized weights, one scale each of the first axis."""
        codes = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant(self.rng.uniform(0.002, 0.01, shape[0]).astype(np.float32))
        return self._node("DequantizeLinear", codes, scales, axis=0)

    def apply(self, op: str, *others: str, **attributes: Attribute) -> None:
        """Apply an operator to what is computed so far, between quantizers where the graph is quantized."""
        if self.kind != "int8":
            self._last = self._node(op, self._last, *others, **attributes)
            return
        real = self._node("DequantizeLinear", self._last, self._scale(), self._zero())
        self._last = self._node(
            "QuantizeLinear", self._node(op, real, *others, **attributes), self._scale(), self._zero()
        )

    def _scale(self) -> str:
        return self.constant(np.float32(self.rng.uniform(0.01, 0.05)))

    def _zero(self) -> str:
        return self.constant(np.int8(self.rng.integers(-20, 20)))

    def _node(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], None, None, None, None, **attributes))
        return name

    def model(self) -> ir.Model:
        """Return the graph, imported."""
        element = _ELEMENTS[self.kind]
        graph = helper.make_graph(
            [*self._nodes, helper.make_node("Identity", [self._last], ["y"])], "random",
            [helper.make_tensor_value_info("x", element, self.start)],
            [helper.make_tensor_value_info("y", element, self.shape)], self._constants,
        )  # fmt: skip
        opset = [helper.make_opsetid("", _OPSET)]
        return import_model(helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)).model

    def inputs(self) -> dict[str, Array]:
        """Return values for its input: standard normal ones, or any int8."""
        if self.kind == "int8":
            return {"x": self.rng.integers(-128, 128, self.start).astype(np.int8)}
        return {"x": self.rng.normal(size=self.start).astype(self.kind)}


def _broadcast(draft: Draft) -> None:
    shape = [size if draft.rng.random() < 0.7 else 1 for size in draft.shape]
    draft.apply(str(draft.rng.choice(["Add", "Mul", "Sub", "Max"])), draft.weights(*shape))


def _curve(draft: Draft) -> None:
    draft.apply(str(draft.rng.choice(["Relu", "Sigmoid", "Tanh", "Abs", "HardSwish", "Erf"])))


def _relu(draft: Draft) -> None:
    draft.apply("Relu")


def _reduce(draft: Draft) -> None:
    rank = len(draft.shape)
    axes = sorted(int(a) for a in draft.rng.choice(rank, int(draft.rng.integers(1, rank)), replace=False))
    op = str(draft.rng.choice(["ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin", "ReduceL2"]))
    draft.apply(op, draft.constant(np.array(axes)), keepdims=1)
    for axis in axes:
        draft.shape[axis] = 1


def _softmax(draft: Draft) -> None:
    draft.apply("Softmax", axis=draft.axis())


def _layer_norm(draft: Draft) -> None:
    last = draft.shape[-1]
    draft.apply("LayerNormalization", draft.weights(last), draft.weights(last), axis=-1, epsilon=0.1)


def _product(draft: Draft) -> None:
    terms, columns = draft.shape[-1], draft.size()
    if draft.kind == "int8":
        if len(draft.shape) != 2:
            return
        draft.apply("Gemm", draft.quantized(columns, terms), transB=1)
    else:
        draft.apply("MatMul", draft.weights(terms, columns, terms=terms))
    draft.shape[-1] = columns


def _convolution(draft: Draft) -> None:
    if len(draft.shape) != 4:
        return
    rng, channels = draft.rng, draft.shape[1]
    group = channels if rng.random() < 0.3 else 1
    filters = group * int(rng.integers(1, 3)) if group > 1 else draft.size()
    window = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    stride, dilation, pad = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(0, 3))
    reach = [dilation * (size - 1) + 1 for size in window]
    spots = [(size + 2 * pad - r) // stride + 1 for size, r in zip(draft.shape[2:], reach, strict=True)]
    if min(spots) < 1:
        return
    shape = (filters, channels // group, *window)
    if draft.kind == "int8":
        constants = [draft.quantized(*shape)]
    else:
        constants = [draft.weights(*shape, terms=prod(shape[1:])), draft.weights(filters)]
    draft.apply(
        "Conv", *constants, group=group, strides=[stride] * 2, dilations=[dilation] * 2, pads=[pad] * 4
    )
    draft.shape = [draft.shape[0], filters, *spots]


def _pool(draft: Draft) -> None:
    if len(draft.shape) != 4:
        return
    rng = draft.rng
    window, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    pad = int(rng.integers(0, window))
    spots = [(size + 2 * pad - window) // stride + 1 for size in draft.shape[2:]]
    if min(spots) < 1:
        return
    op = "MaxPool" if draft.kind == "int8" or rng.random() < 0.5 else "AveragePool"
    draft.apply(op, kernel_shape=[window] * 2, strides=[stride] * 2, pads=[pad] * 4)
    draft.shape = [*draft.shape[:2], *spots]


def _pool_all(draft: Draft) -> None:
    if len(draft.shape) == 4:
        draft.apply(str(draft.rng.choice(["GlobalAveragePool", "GlobalMaxPool"])))
        draft.shape[2:] = [1, 1]


def _transpose(draft: Draft) -> None:
    order = [int(a) for a in draft.rng.permutation(len(draft.shape))]
    draft.apply("Transpose", perm=order)
    draft.shape = [draft.shape[axis] for axis in order]


def _concat(draft: Draft) -> None:
    axis, more = draft.axis(), int(draft.rng.integers(1, 4))
    draft.apply(
        "Concat", draft.weights(*(more if a == axis else s for a, s in enumerate(draft.shape))), axis=axis
    )
    draft.shape[axis] += more


def _slice(draft: Draft) -> None:
    axis, step = draft.axis(), int(draft.rng.integers(1, 3))
    size = draft.shape[axis]
    if size > 1:
        draft.apply("Slice", *(draft.constant(np.array([v])) for v in (1, size, axis, step)))
        draft.shape[axis] = (size - 1 + step - 1) // step


def _pad(draft: Draft) -> None:
    rank = len(draft.shape)
    pads = draft.rng.integers(0, 3, 2 * rank)
    draft.apply("Pad", draft.constant(pads))
    draft.shape = [size + int(pads[a] + pads[rank + a]) for a, size in enumerate(draft.shape)]


def _resize(draft: Draft) -> None:
    if len(draft.shape) == 4:
        scales = draft.constant(np.array([1, 1, 2, 2], np.float32))
        draft.apply("Resize", "", scales, mode=str(draft.rng.choice(["nearest", "linear"])))
        draft.shape[2:] = [2 * size for size in draft.shape[2:]]


Step = Callable[[Draft], None]
_EXACT: Sequence[Step] = (_relu, _product, _product, _convolution, _convolution, _pool, _transpose, _slice)
_FLOAT: Sequence[Step] = (
    _broadcast, _curve, _reduce, _softmax, _layer_norm, _product, _convolution, _convolution, _pool,
    _pool_all, _transpose, _concat, _slice, _pad, _resize,
)  # fmt: skip


def random_graph(seed: int, kind: str) -> Draft:
    """Return a graph of one to five operators; of int8 those only whose results are exact integers."""
    draft = Draft(np.random.default_rng([seed, KINDS.index(kind)]), kind)
    steps = _EXACT if kind == "int8" else _FLOAT
    for _ in range(int(draft.rng.integers(2, 6))):
        steps[int(draft.rng.integers(len(steps)))](draft)
        if prod(draft.shape) > _MOST_VALUES:
            break
    return draft
