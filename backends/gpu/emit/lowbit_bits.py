"""Emission of what `lowbit_binary.py` put into the graph: packing of signs, maxima and products of bits."""

from __future__ import annotations

from dataclasses import fields
from math import prod
from typing import TYPE_CHECKING

import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute, static_shape
from ..schedules.lowbit_binary import WORD, Pack, Shape
from .lowbit_binary import PACK, POOL, PRODUCT
from .lowbit_written import DOMAIN, emit_written
from .walk import Emitter, Last, Rule, dtype_of, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def _pack(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te, tirx

    value = node.inputs[0]
    assert value is not None, "signs of nothing"
    image = len(value.shape or ()) == 4
    x = emitter.image(node, 0) if image else emitter.operand(node, 0)
    *lead, channels = shape_of(x)
    sizes = static_shape(node.outputs[0])
    assert sizes is not None, "words without a shape"

    def words(t: te.Tensor) -> te.Tensor:
        b = te.reduce_axis((0, WORD), "b")

        def element(n: tirx.Var, i: tirx.Var, j: tirx.Var, word: tirx.Var) -> tirx.Expr:
            c = word * WORD + b
            at = (n, i, j) if image else (n,)
            real = t(*at, tirx.min(c, channels - 1)).astype("float32")
            bit = tirx.all(c < channels, real >= tirx.const(0, "float32")).astype("uint32")
            return te.sum(bit << b.astype("uint32"), axis=b)

        return te.compute(sizes, element, name="words")

    return emit_written(emitter, "signs", "binary-pack", Pack(prod(lead), channels, dtype_of(x)), words, [x])


def _pool(emitter: Emitter, node: ir.Node) -> Expr:
    """Maxima of bits: any bit of a window."""
    from tvm import te, tirx

    x, sizes = emitter.operand(node, 0), static_shape(node.outputs[0])
    assert sizes is not None, "words without a shape"
    kernel, strides, dilations, pads = (
        ints_attribute(node, name) for name in ("kernel", "strides", "dilations", "pads")
    )
    _, height, width, _ = shape_of(x)

    def any_bit(t: te.Tensor) -> te.Tensor:
        def element(n: tirx.Var, i: tirx.Var, j: tirx.Var, word: tirx.Var) -> tirx.Expr:
            total = tirx.const(0, "uint32")
            for row in range(kernel[0]):
                for column in range(kernel[1]):
                    y = i * strides[0] - pads[0] + row * dilations[0]
                    z = j * strides[1] - pads[1] + column * dilations[1]
                    inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
                    total = total | tirx.if_then_else(inside, t(n, y, z, word), tirx.const(0, "uint32"))
            return total

        return te.compute(sizes, element, name="any_bit")

    return emitter.compute("any_bit", any_bit, x)


def _shape_of(node: ir.Node) -> Shape:
    found: dict[str, object] = {}
    for field in fields(Shape):
        if field.type.startswith("tuple"):
            found[field.name] = tuple(ints_attribute(node, field.name))
        elif field.type == "bool":
            found[field.name] = bool(int_attribute(node, field.name, 0))
        else:
            found[field.name] = attribute(node, field.name)
    return Shape(**found)  # type: ignore[arg-type]


def _product(emitter: Emitter, node: ir.Node) -> Expr | Last:
    shape, rank = _shape_of(node), len(node.outputs[0].shape or ())
    x = emitter.operand(node, 0)
    arrays = [emitter.array(node, index) for index in range(1, len(node.inputs))]

    def formula(data: te.Tensor, w: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        total = _sums(shape, data, w)
        return _bits(shape, total, rest[0]) if shape.bits else _reals(shape, total, rank, *rest)

    result = emit_written(emitter, "binary_product", "binary-product", shape, formula, [x], arrays)
    return Last(result) if rank == 4 and not shape.bits else result


def _sums(shape: Shape, data: te.Tensor, w: te.Tensor) -> te.Tensor:
    """Return int32 [N, OH, OW, M]: sums of -1 and +1 over the taps that lie in the image."""
    from tvm import te, tirx

    rows, columns, words = (
        te.reduce_axis((0, size), name)
        for size, name in ((shape.kernel[0], "kh"), (shape.kernel[1], "kw"), (shape.words, "word"))
    )
    tail = shape.channels - (shape.words - 1) * WORD

    def element(n: tirx.Var, i: tirx.Var, j: tirx.Var, m: tirx.Var) -> tirx.Expr:
        y = i * shape.strides[0] - shape.pads[0] + rows * shape.dilations[0]
        z = j * shape.strides[1] - shape.pads[1] + columns * shape.dilations[1]
        inside = tirx.all(y >= 0, y < shape.height, z >= 0, z < shape.width)
        place = (rows * shape.kernel[1] + columns) * shape.words + words
        differ = data(n, y, z, words) ^ w(place // shape.vector, m, place % shape.vector)
        count = tirx.if_then_else(words < shape.words - 1, WORD, tail)
        found = count - 2 * tirx.popcount(differ).astype("int32")
        return te.sum(tirx.if_then_else(inside, found, 0), axis=(rows, columns, words))

    sizes = (shape.count, shape.out_height, shape.out_width, shape.outputs)
    return te.compute(sizes, element, name="sums")


def _bits(shape: Shape, total: te.Tensor, lowest: te.Tensor) -> te.Tensor:
    from tvm import te, tirx

    sizes = (shape.count, shape.out_height, shape.out_width, -(-shape.outputs // WORD))
    b = te.reduce_axis((0, WORD), "b")

    def element(n: tirx.Var, i: tirx.Var, j: tirx.Var, word: tirx.Var) -> tirx.Expr:
        m = word * WORD + b
        own = tirx.min(m, shape.outputs - 1)
        bit = tirx.all(m < shape.outputs, total(n, i, j, own) >= lowest(own)).astype("uint32")
        return te.sum(bit << b.astype("uint32"), axis=b)

    return te.compute(sizes, element, name="bits")


def _reals(
    shape: Shape, total: te.Tensor, rank: int, scale: te.Tensor, bias: te.Tensor | None = None
) -> te.Tensor:
    from tvm import te

    def real(n: tirx.Var, i: tirx.Var, j: tirx.Var, m: tirx.Var) -> tirx.Expr:
        value = total(n, i, j, m).astype("float64") * scale(m)
        return (value if bias is None else value + bias(m)).astype("float32").astype(shape.data)

    if rank == 2:
        return te.compute((shape.count, shape.outputs), lambda n, m: real(n, 0, 0, m), name="reals")
    return te.compute(total.shape, real, name="reals")


RULES: dict[tuple[str, str], Rule] = {
    (DOMAIN, PACK): _pack,
    (DOMAIN, POOL): _pool,
    (DOMAIN, PRODUCT): _product,
}
