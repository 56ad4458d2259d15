"""Products by weights of 2:4, found by their zeros: half floats, and bytes where layers are integers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import Names, int_attribute, producer, static_shape
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_of
from ..schedules.lowbit_sparse import MOST_ROWS, Shape, is_sparse, pack
from .lowbit import gemm_bias, tail_of
from .lowbit_written import DOMAIN, emit_written, finished, initializer, products, put_for
from .walk import Emitter, Rule, dtype_of, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

OP = "SparseProduct"
_X, _WEIGHTS, _BIAS = range(3)


def use_sparse_products(model: ir.Model) -> int:
    """Replace products of few rows by half floats of 2:4 in place; returns how many."""
    names = Names(model)
    replaced = sum(_replace(node, names) for node in list(model.graph))
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


def _replace(node: ir.Node, names: Names) -> bool:
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return False
    weights = _weights(node)
    bias = None if weights is None else gemm_bias(node, len(weights))
    if weights is None or bias is None:
        return False
    last, bias, activation = tail_of(node, bias, len(weights))
    base, graph = last.outputs[0].name or "product", node.graph
    assert graph is not None, "a product is in no graph"
    arrays = (weights, bias if bias.size else None)
    values = [initializer(graph, names.fresh(f"{base}_sparse"), array) for array in arrays]
    put_for(last, OP, [node.inputs[0], *values], {"activation": activation}, node.name)
    return True


def _weights(node: ir.Node) -> npt.NDArray[np.number] | None:
    """Return weights [N, K] of 2:4 in float16, with few rows of data."""
    x, weight = node.inputs[:2]
    sizes = None if x is None else static_shape(x)
    if x is None or x.dtype != ir.DataType.FLOAT16 or not sizes or prod(sizes[:-1]) > MOST_ROWS:
        return None
    factors = int_attribute(node, "transA", 0), float_attribute(node, "alpha", 1.0)
    turned = bool(int_attribute(node, "transB", 0))
    transposed = producer(weight, "Transpose")
    if transposed is not None:
        weight, turned = transposed.inputs[0], not turned
    array = constant_of(weight)
    if array is None or array.ndim != 2 or factors != (0, 1.0):
        return None
    rows = np.ascontiguousarray(array if turned else array.T)
    return rows if is_sparse(rows) and rows.shape[1] == sizes[-1] else None


# --- emission ---------------------------------------------------------------------------------------


def _product(emitter: Emitter, node: ir.Node) -> Expr:
    weights, bias = emitter.array(node, _WEIGHTS), emitter.maybe_array(node, _BIAS)
    x, activation = emitter.operand(node, _X), int_attribute(node, "activation", 0)
    return _emit(emitter, x, weights, activation, bias)


def integer_sums(emitter: Emitter, x: Expr, matrix: npt.NDArray[np.int8]) -> Expr | None:
    """Return int32 sums of int8 data and a matrix [K, N] of 2:4; None where a dense kernel is the better."""
    rows = np.ascontiguousarray(matrix.T)
    if prod(shape_of(x)[:-1]) > MOST_ROWS or dtype_of(x) != "int8" or not is_sparse(rows):
        return None
    return _emit(emitter, x, rows, 0, None)


def _emit(
    emitter: Emitter, x: Expr, weights: npt.NDArray[np.number], activation: int,
    bias: npt.NDArray[np.number] | None,
) -> Expr:  # fmt: skip
    rows, depth = weights.shape
    shape = Shape(prod(shape_of(x)[:-1]), rows, depth, dtype_of(x), activation, bias is not None)
    given = [*pack(weights), *([] if bias is None else [bias.astype(np.float32)])]
    return emit_written(emitter, "sparse_product", "sparse", shape, _Formula(shape), [x], given)


@dataclass(frozen=True)
class _Formula:
    """What the kernel computes, from the weights as they are packed."""

    shape: Shape

    def __call__(
        self, x: te.Tensor, w: te.Tensor, places: te.Tensor, bias: te.Tensor | None = None
    ) -> te.Tensor:
        from tvm import te

        shape, kind = self.shape, "int32" if self.shape.data == "int8" else "float32"
        weights = te.compute((shape.n, shape.k), lambda n, k: self._weight(w, places, n, k), name="weights")
        total = products(x, weights, kind)
        return total if kind == "int32" else finished(total, bias, shape.activation, shape.data)

    def _weight(self, w: te.Tensor, places: te.Tensor, n: tirx.Var, k: tirx.Var) -> tirx.Expr:
        """Return the weight of row n, column k; see `lowbit_sparse.pack`."""
        from tvm import tirx

        def unsigned(number: tirx.Expr) -> tirx.Expr:
            return number.astype("uint32")

        lane, group = n % 8 * 4 + k % 32 // 8, n % 16 // 8 * 2 + k % 8 // 4
        where = places(n // 16, k // 128, lane, k % 128 // 64) >> unsigned(k % 64 // 32 * 16 + group * 4)
        wide, total = self.shape.data == "float16", tirx.const(0, "uint32")
        for slot in (0, 1):
            at, bits = (group, slot * 16) if wide else (group // 2, group % 2 * 16 + slot * 8)
            word = w(n // 16, k // 32, lane, at) >> (
                unsigned(bits) if not wide else tirx.const(bits, "uint32")
            )
            own = ((where >> tirx.const(2 * slot, "uint32")) & tirx.const(3, "uint32")) == unsigned(k % 4)
            total = total | tirx.Select(own, word, tirx.const(0, "uint32"))
        if wide:
            return tirx.reinterpret("float16", total.astype("uint16"))
        return tirx.reinterpret("int8", total.astype("uint8"))


RULES: dict[tuple[str, str], Rule] = {(DOMAIN, OP): _product}
