"""Products of activations that become int8 in blocks at run time, and weights of 4 bits in such blocks.

DynamicBlockQuantize -> DequantizeLinear(q), DequantizeLinear(w) -> MatMul | Gemm        docs/semantics.md
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import Names, int_attribute, producer
from ....compiler.ops import dynamic_blocks
from ....compiler.ops.common import PARED_DOMAIN
from ....compiler.ops.constants import constant_expression, constant_of
from ...reference.blocks import block_operands
from ..schedules.lowbit_blocks import Shape, pack
from ..schedules.lowbit_written import CHUNK
from .lowbit_written import DOMAIN, emit_written, finished, initializer, put_for
from .walk import Array, Emitter, Rule, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

QUANTIZE, PRODUCT = "BlockQuantize", "BlockProduct"
_Q, _SCALE, _WEIGHTS, _W_SCALE, _BIAS = range(5)


def use_blocks(model: ir.Model) -> int:
    """Replace products of blocks in place, and what makes the blocks where nothing else reads them."""
    names, replaced = Names(model), 0
    for node in list(model.graph):
        if node.op_type in ("MatMul", "Gemm") and node.domain == "":
            replaced += _replace(node, names)
    for node in list(model.graph):
        if (node.domain, node.op_type) == (PARED_DOMAIN, dynamic_blocks.OP):
            _take_maker(node)
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


def _replace(node: ir.Node, names: Names) -> bool:
    operands, graph = block_operands(node), node.graph
    if operands is None or graph is None:
        return False
    (q, scale), (w, w_scale, w_zero), block = operands
    arrays = _arrays(node, w, w_scale, w_zero, block)
    if arrays is None or producer(q, dynamic_blocks.OP, PARED_DOMAIN) is None:
        return False
    base = f"{node.outputs[0].name}_blocks"
    values = [initializer(graph, names.fresh(base), array) for array in arrays]
    put_for(node, PRODUCT, [q, scale, *values], {"block_size": block}, node.name)
    return True


def _arrays(
    node: ir.Node, w: ir.Value | None, w_scale: ir.Value | None, w_zero: ir.Value | None, block: int
) -> tuple[Array, Array, Array | None] | None:
    """Return weights [N, K] from -8 to 7, scales [N, blocks] and the bias; None where they do not fit."""
    q, scale = constant_of(w), constant_expression(w_scale)
    zero = np.zeros(1, np.int64) if w_zero is None else constant_expression(w_zero)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    added = constant_expression(bias)
    if q is None or scale is None or zero is None or block % CHUNK or (bias is not None and added is None):
        return None
    turned = bool(int_attribute(node, "transB", 0))
    whole = q.astype(np.int64)
    axis = 1 if turned else 0
    whole -= np.repeat(zero.astype(np.int64), block, axis=axis) if w_zero is not None else 0
    if whole.min() < -8 or whole.max() > 7:
        return None
    rows = whole.shape[1 - axis]
    if added is not None and (added.size not in (1, rows) or added.size != added.shape[-1]):
        return None
    spread = None if added is None else np.broadcast_to(added.reshape(-1).astype(np.float32), (rows,))
    weights, scales = (array if turned else array.T for array in (whole, scale))
    return (
        np.ascontiguousarray(weights.astype(np.int8)), np.ascontiguousarray(scales, np.float32),
        None if spread is None else np.ascontiguousarray(spread),
    )  # fmt: skip


def _take_maker(node: ir.Node) -> None:
    """Replace what makes blocks if products of blocks are all that will read them."""
    users = list(dict.fromkeys(use.node for value in node.outputs for use in value.uses()))
    alive = [user for user in users if user.domain != DOMAIN and user.outputs[0].uses()]
    if alive or any(value.is_graph_output() for value in node.outputs) or node.graph is None:
        return
    for user in [user for user in users if user.domain != DOMAIN]:
        node.graph.remove(user, safe=True)
    new = ir.Node(
        DOMAIN, QUANTIZE, node.inputs, list(node.attributes.values()), num_outputs=2, name=node.name
    )
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], node.outputs, new.outputs)


# --- emission ---------------------------------------------------------------------------------------


def _quantize(emitter: Emitter, node: ir.Node) -> list[Expr]:
    """`q = rint(x * (127 / largest))`, `scale = largest / 127`; each step rounds once."""
    from tvm import te, tirx

    x, block = emitter.operand(node, 0), int_attribute(node, "block_size", dynamic_blocks.BLOCK)
    *lead, size = shape_of(x)

    def largest(t: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, block), "k")
        return te.compute(
            (*lead, size // block),
            lambda *at: te.max(tirx.abs(t(*at[:-1], at[-1] * block + k)), axis=k),
            name="largest",
        )

    def steps(t: te.Tensor, most: te.Tensor) -> te.Tensor:
        levels = tirx.const(dynamic_blocks.LEVELS, "float32")

        def element(*at: tirx.Var) -> tirx.Expr:
            own = most(*at[:-1], at[-1] // block)
            known = own >= tirx.const(dynamic_blocks.SMALLEST, "float32")
            factor = tirx.Select(known, levels / own, tirx.const(0, "float32"))
            return tirx.nearbyint(t(*at) * factor).astype("int8")

        return te.compute(t.shape, element, name="steps")

    def scales(most: te.Tensor) -> te.Tensor:
        levels = tirx.const(dynamic_blocks.LEVELS, "float32")
        return te.compute(most.shape, lambda *at: most(*at) / levels, name="scales")

    most = emitter.compute("largest", largest, x)
    return [emitter.compute("steps", steps, x, most), emitter.compute("scales", scales, most)]


def _product(emitter: Emitter, node: ir.Node) -> Expr:
    q, scale = emitter.operand(node, _Q), emitter.operand(node, _SCALE)
    weights, bias = emitter.array(node, _WEIGHTS), emitter.maybe_array(node, _BIAS)
    block = int_attribute(node, "block_size", dynamic_blocks.BLOCK)
    shape = Shape(prod(shape_of(q)[:-1]), weights.shape[0], weights.shape[1], block, bias is not None)
    constants = [pack(weights.astype(np.int8)), emitter.array(node, _W_SCALE)]
    constants += [] if bias is None else [bias]
    return emit_written(emitter, "w4a8_product", "blocks", shape, _Formula(shape), [q, scale], constants)


@dataclass(frozen=True)
class _Formula:
    """What the kernel computes, from the weights as they are packed."""

    shape: Shape

    def __call__(
        self, q: te.Tensor, scale: te.Tensor, w: te.Tensor, w_scale: te.Tensor, bias: te.Tensor | None = None
    ) -> te.Tensor:
        from tvm import te

        shape, blocks, lead = self.shape, self.shape.k // self.shape.block, q.shape[:-1]
        weights = te.compute((shape.n, shape.k), lambda n, k: self._weight(w, n, k), name="weights")
        k = te.reduce_axis((0, shape.block), "k")
        sums = te.compute(
            (*lead, shape.n, blocks),
            lambda *at: te.sum(
                q(*at[:-2], at[-1] * shape.block + k).astype("int32")
                * weights(at[-2], at[-1] * shape.block + k),
                axis=k,
            ),
            name="sums",
        )
        b = te.reduce_axis((0, blocks), "b")
        total = te.compute(
            (*lead, shape.n),
            lambda *at: te.sum(
                sums(*at, b).astype("float32") * (w_scale(at[-1], b) * scale(*at[:-1], b)), axis=b
            ),
            name="total",
        )
        return finished(total, bias, 0, "float32")

    def _weight(self, w: te.Tensor, n: tirx.Var, k: tirx.Var) -> tirx.Expr:
        """Return the weight of row n, column k; see `lowbit_blocks.pack`."""
        from tvm import tirx

        word = w(n // 16, k // 64, n % 8 * 4 + k % 32 // 8, k % 64 // 32 * 2 + k % 8 // 4)
        shift = (k % 4 * 8 + n % 16 // 8 * 4).astype("uint32")
        code = ((word >> shift) & tirx.const(15, "uint32")).astype("int32")
        return tirx.Select(code > 7, code - 16, code)


RULES: dict[tuple[str, str], Rule] = {(DOMAIN, QUANTIZE): _quantize, (DOMAIN, PRODUCT): _product}
