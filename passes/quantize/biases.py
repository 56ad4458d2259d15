"""Where a layer's constant bias is: an operand of its own, or that of the Add behind a MatMul."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ...compiler.ir import walk
from .plan import Site


def bias_add(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the Add of a constant vector that alone reads a product with a constant matrix.

    Linear layers of rank 3 and more are written so; Gemm has rank 2.

    Returns:
        The Add and the index of its constant operand, None where there is no such Add.
    """
    if node.op_type != "MatMul" or node.domain:
        return None
    add, right = walk.only_user(node.outputs[0]), node.inputs[1]
    weight = None if right is None else walk.constant_tensor(right)
    if add is None or add.op_type != "Add" or add.domain or add.graph is not node.graph or weight is None:
        return None
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    sizes = tuple(int(size) for size in weight.shape.numpy())
    return (add, index) if len(sizes) == 2 and _is_vector(add.inputs[index], sizes[1], node) else None


def _is_vector(value: ir.Value | None, columns: int, node: ir.Node) -> bool:
    """Say whether a value is a constant [columns], perhaps with leading ones that broadcast nothing."""
    tensor = None if value is None else walk.constant_tensor(value)
    if value is None or tensor is None or value.dtype != ir.DataType.FLOAT or value.is_graph_output():
        return False
    sizes, result = tuple(int(size) for size in tensor.shape.numpy()), node.outputs[0].shape
    fits = len(sizes) == 1 or (result is not None and len(sizes) <= result.rank())
    return fits and len(sizes) > 0 and sizes[-1] == columns == tensor.size


def bias_sites(node: ir.Node) -> Iterator[tuple[Site, ir.Value | None]]:
    """Yield the sites at which a plan may have a bias of this layer, with what is there."""
    name = node.name or ""
    for index in range(2, len(node.inputs)):
        yield Site.read(name, index), node.inputs[index]
    if (added := bias_add(node)) is not None:
        add, index = added
        yield Site.added(name), add.inputs[index]
