"""Operators that move data: slices, joins, padding, gathers, repeats; shapes and transposes of any rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute
from ....compiler.ops.constants import constant_expression
from . import layers as L
from . import layers_sequence as S
from .quantized import array_of
from .read_chain import emit, ending, is_image, operand
from .reader import Reader, Refused, Rule, Tail, any_tensor, covers, input_of, shape_of, tensor_of


def marked(rule: Rule) -> Rule:
    """Return a rule for Reshape, Transpose and the like that also says where sequences begin."""

    def marking(reader: Reader, node: ir.Node) -> None:
        rule(reader, node)
        layer = reader.layers[-1]
        x, y = layer.inputs[0], layer.output
        images = {len(x.shape), len(y.shape)} <= {2, 4}
        flat = (
            isinstance(layer, L.Reshape) and images and y.shape in (x.shape, (x.shape[0], prod(x.shape[1:])))
        )
        port = isinstance(layer, L.Transpose) and images and input_of(node, 0).is_graph_input()
        same = images and (flat or port or _trivial(x.shape, y.shape))
        if x.name in reader.sequence or not same:
            reader.sequence.add(y.name)

    return marking


def _trivial(one: Sequence[int], other: Sequence[int]) -> bool:
    """Say whether shapes differ by ones behind the channels only."""
    return prod(one[:2]) == prod(one) and tuple(other[:2]) == tuple(one[:2]) and prod(other) == prod(one)


def move(reader: Reader, node: ir.Node, tail: Tail, layer: L.Layer) -> None:
    """Add a layer whose result is read by strides or lies in a row."""
    reader.take(*tail.nodes)
    reader.emit(layer, tail.value)
    reader.sequence.add(layer.output.name)


def cast(reader: Reader, node: ir.Node) -> None:
    """Read a Cast to float32; from integers it converts, from float32 it does nothing."""
    tensor = None if node.inputs[0] is None else reader.tensors.get(node.inputs[0])
    target = node.outputs[0].dtype
    if tensor is not None and tensor.quant is None and target == ir.DataType.FLOAT:
        if tensor.dtype in ("int32", "int64"):
            output = tensor_of(node.outputs[0], node)
            emit(reader, node, ending(node.outputs[0], node), S.Chain((tensor,), output, covers(node), ()))
            return
        if tensor.dtype == "float32":
            reader.emit(L.Reshape((tensor,), tensor_of(node.outputs[0], node), covers(node)), node.outputs[0])
            return
    kind = getattr(tensor, "dtype", "a constant")
    raise Refused(node, f"casts {kind} to {getattr(target, 'name', target)}; the kernels have float32")


# --- parts ------------------------------------------------------------------------------------------------


def slice_(reader: Reader, node: ir.Node) -> None:
    """Read a Slice with constant bounds."""
    shape = shape_of(input_of(node, 0), node)
    given = [_ints(node, i) for i in range(1, 5)]
    if given[0] is None or given[1] is None:
        raise Refused(node, "the bounds are not constant")
    starts, steps = [0] * len(shape), [1] * len(shape)
    axes = given[2] if given[2] is not None else tuple(range(len(given[0])))
    strides = given[3] if given[3] is not None else (1,) * len(axes)
    for axis, start, end, step in zip(axes, given[0], given[1], strides, strict=True):
        starts[axis] = slice(start, _end(end, step), step).indices(shape[axis])[0]
        steps[axis] = step
    x, tail = any_tensor(reader, node)
    output = tensor_of(tail.value, node, tail.quant)
    if min(output.shape, default=1) < 1:
        raise Refused(node, f"an empty slice of shape {output.shape}")
    _part(reader, node, x, tail, output, starts, steps, range(len(shape)))


def _end(end: int, step: int) -> int | None:
    """Return the end for Python: what lies before the first element means all of it, backwards."""
    return None if step < 0 and end < -(1 << 30) else end


def _part(
    reader: Reader,
    node: ir.Node,
    x: L.Tensor,
    tail: Tail,
    output: L.Tensor,
    starts: Sequence[int],
    steps: Sequence[int],
    kept: Sequence[int],
) -> None:
    nodes = covers(node, *tail.nodes)
    layer = S.Slice((x,), output, nodes, tuple(starts), output.shape, tuple(steps), tuple(kept))
    move(reader, node, tail, layer)


def _ints(node: ir.Node, index: int) -> tuple[int, ...] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    array = constant_expression(value)
    if array is None:
        raise Refused(node, f"input {index} is not constant")
    return tuple(int(number) for number in array.reshape(-1))


def split(reader: Reader, node: ir.Node) -> None:
    """Read a Split as slices."""
    shape = shape_of(input_of(node, 0), node)
    axis, first = int_attribute(node, "axis", 0) % len(shape), 0
    x = operand(reader, node.inputs[0], node)
    if x.quant is not None:
        x = reader.real(node.inputs[0], node)
    for value in node.outputs:
        output = tensor_of(value, node)
        starts = [first if i == axis else 0 for i in range(len(shape))]
        _part(reader, node, x, Tail(value), output, starts, [1] * len(shape), range(len(shape)))
        first += output.shape[axis]


def join(reader: Reader, node: ir.Node) -> None:
    """Read a Concat along any axis, constants among its parts."""
    end = ending(node.outputs[0], node)
    axis = int_attribute(node, "axis", 0) % len(end.tensor.shape)
    inputs: list[L.Tensor] = []
    parts: list[int | L.Floats] = []
    for value in node.inputs:
        array = array_of(value) if reader.is_constant(value) else None
        if array is not None:
            if array.dtype != np.float32 or end.tensor.quant is not None:
                raise Refused(node, "joins constants of another kind")
            parts.append(np.asarray(array, np.float32))
            continue
        parts.append(len(inputs))
        inputs.append(operand(reader, value, node))
    image = is_image(reader, node)
    layer = S.Join(tuple(inputs), end.tensor, covers(node, *end.nodes), axis, tuple(parts), image)
    emit(reader, node, end, layer)


def pad(reader: Reader, node: ir.Node) -> None:
    """Read constant padding along any axes."""
    mode = attribute(node, "mode", "constant")
    shape, pads = shape_of(input_of(node, 0), node), _ints(node, 1)
    fill = (
        constant_expression(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    )
    if (
        mode != "constant"
        or pads is None
        or (fill is None and len(node.inputs) > 2 and node.inputs[2] is not None)
    ):
        raise Refused(node, f"padding of mode {mode!r}; needs a constant by constant amounts")
    axes = _ints(node, 3) or tuple(range(len(shape)))
    before, after = [0] * len(shape), [0] * len(shape)
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    value = 0.0 if fill is None else float(fill.reshape(()))
    image = is_image(reader, node)
    x, tail = any_tensor(reader, node)
    if tail.quant is not None and value:
        raise Refused(node, f"quantized padding by {value}; needs 0")
    layer = S.Pad((x,), tensor_of(tail.value, node, tail.quant), covers(node, *tail.nodes), tuple(before),
                  tuple(after), value, image)  # fmt: skip
    reader.take(*tail.nodes)
    reader.emit(layer, tail.value)
    if not image:
        reader.sequence.add(layer.output.name)


# --- by number --------------------------------------------------------------------------------------------


def gather(reader: Reader, node: ir.Node) -> None:
    """Read a Gather: by constant numbers a slice where they are evenly spaced."""
    shape = shape_of(input_of(node, 0), node)
    axis = int_attribute(node, "axis", 0) % len(shape)
    numbers = constant_expression(node.inputs[1]) if reader.is_constant(node.inputs[1]) else None
    output = tensor_of(node.outputs[0], node)
    if numbers is None:
        _by_input(reader, node, axis, output)
        return
    x = reader.real(node.inputs[0], node)
    positive = np.where(numbers < 0, numbers + shape[axis], numbers).astype(np.int64)
    if bool(np.any((positive < 0) | (positive >= shape[axis]))):
        raise Refused(node, f"numbers outside an axis of {shape[axis]}")
    flat = [int(number) for number in positive.reshape(-1)]
    step = flat[1] - flat[0] if len(flat) > 1 else 1
    if numbers.ndim > 1 or not step or flat != [flat[0] + i * step for i in range(len(flat))]:
        layer = S.Take((x,), output, covers(node), axis, tuple(flat))
        emit(reader, node, ending(node.outputs[0], node), layer)
        return
    starts = [flat[0] if i == axis else 0 for i in range(len(shape))]
    steps = [step if i == axis else 1 for i in range(len(shape))]
    kept = [i for i in range(len(shape)) if i != axis or numbers.ndim]
    _part(reader, node, x, Tail(node.outputs[0]), output, starts, steps, kept)


def _by_input(reader: Reader, node: ir.Node, axis: int, output: L.Tensor) -> None:
    """Read a Gather whose numbers depend on the input."""
    found = None if node.inputs[1] is None else reader.tensors.get(node.inputs[1])
    if found is None or found.dtype not in ("int32", "int64"):
        raise Refused(node, "numbers that are not whole or made by another operator")
    inputs: tuple[L.Tensor, ...] = (found,)
    table = None
    if not reader.is_constant(node.inputs[0]):
        inputs = (reader.real(node.inputs[0], node), found)
    else:
        table = array_of(node.inputs[0])
        if table is None or table.dtype != np.float32:
            raise Refused(node, "needs a constant table of float32")
    layer = S.Take(
        inputs, output, covers(node), axis, None, None if table is None else np.asarray(table, np.float32)
    )
    emit(reader, node, ending(node.outputs[0], node), layer)


# --- repeats ----------------------------------------------------------------------------------------------


def expand(reader: Reader, node: ir.Node) -> None:
    """Read an Expand: its readers see the same elements again."""
    x, tail = any_tensor(reader, node)
    output = tensor_of(tail.value, node, tail.quant)
    move(reader, node, tail, S.Expand((x,), output, covers(node, *tail.nodes)))


def tile(reader: Reader, node: ir.Node) -> None:
    """Read a Tile by constant numbers."""
    repeats = _ints(node, 1)
    if repeats is None:
        raise Refused(node, "the repeats are not constant")
    _repeat(reader, node, repeats, whole=True)


def _repeat(reader: Reader, node: ir.Node, factors: Sequence[int], *, whole: bool) -> None:
    x, tail = any_tensor(reader, node)
    output = tensor_of(tail.value, node, tail.quant)
    nodes = covers(node, *tail.nodes)
    if all(size == 1 for size, factor in zip(x.shape, factors, strict=True) if factor > 1):
        move(reader, node, tail, S.Expand((x,), output, nodes))
    else:
        move(reader, node, tail, S.Repeat((x,), output, nodes, tuple(factors), whole))


def resize(reader: Reader, node: ir.Node) -> None:
    """Read a Resize: nearest along any axes, linear along height and width of an image."""
    mode = str(attribute(node, "mode", "nearest"))
    if mode == "cubic" or int_attribute(node, "antialias", 0) or ints_attribute(node, "axes"):
        raise Refused(
            node, f"resizes by {mode}, or along some axes only; the kernels have nearest and linear"
        )
    shapes = shape_of(input_of(node, 0), node), shape_of(node.outputs[0], node)
    scales = constant_expression(node.inputs[2]) if len(node.inputs) > 2 else None
    places = [
        _places(node, size, out, None if scales is None or not scales.size else float(scales.reshape(-1)[i]))
        for i, (size, out) in enumerate(zip(*shapes, strict=True))
    ]
    if mode == "nearest":
        _nearest(reader, node, places)
    else:
        _linear(reader, node, places)


def _places(node: ir.Node, size: int, out: int, scale: float | None) -> np.ndarray:
    """Return where each element of the output lies on an axis of the input."""
    mode = str(attribute(node, "coordinate_transformation_mode", "half_pixel"))
    at, ratio = np.arange(out, dtype=np.float64), scale if scale is not None else out / size
    if out == size and ratio == 1:
        return at
    known = {
        "half_pixel": (at + 0.5) / ratio - 0.5,
        "pytorch_half_pixel": (at + 0.5) / ratio - 0.5 if out > 1 else np.zeros(out),
        "asymmetric": at / ratio,
        "align_corners": at * ((size - 1) / (out - 1)) if out > 1 else np.zeros(out),
    }
    if mode not in known:
        raise Refused(node, f"coordinates by {mode!r}; known: {sorted(known)}")
    return np.asarray(known[mode])


_ROUNDING: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda at: np.asarray(np.ceil(at - 0.5)),
    "round_prefer_ceil": lambda at: np.asarray(np.floor(at + 0.5)),
    "floor": lambda at: np.asarray(np.floor(at)),
    "ceil": lambda at: np.asarray(np.ceil(at)),
}


def _nearest(reader: Reader, node: ir.Node, places: Sequence[np.ndarray]) -> None:
    rounding = str(attribute(node, "nearest_mode", "round_prefer_floor"))
    shape, factors = shape_of(input_of(node, 0), node), []
    for size, at in zip(shape, places, strict=True):
        found = np.clip(_ROUNDING[rounding](at), 0, size - 1).astype(np.int64)
        factor = len(found) // size
        if not factor or len(found) % size or not np.array_equal(found, np.arange(len(found)) // factor):
            raise Refused(node, f"resizes {size} to {len(found)} unevenly; nearest repeats whole elements")
        factors.append(factor)
    _repeat(reader, node, factors, whole=False)


def _linear(reader: Reader, node: ir.Node, places: Sequence[np.ndarray]) -> None:
    shape = shape_of(input_of(node, 0), node)
    if len(shape) != 4 or any(len(at) != size for size, at in zip(shape[:2], places[:2], strict=True)):
        raise Refused(node, f"linear along other axes than height and width of {shape}")
    taps = [_taps(at, size) for size, at in zip(shape[2:], places[2:], strict=True)]
    x, output = reader.real(node.inputs[0], node), tensor_of(node.outputs[0], node)
    reader.emit(S.Resize((x,), output, covers(node), taps[0], taps[1]), node.outputs[0])


def _taps(places: np.ndarray, size: int) -> tuple[tuple[int, int, float], ...]:
    """Return the two neighbours of each place, and the weight of the second."""
    bounded = np.clip(places, 0, size - 1)
    first = np.minimum(np.floor(bounded), max(0, size - 2)).astype(np.int64)
    weights = np.asarray(bounded - first, np.float32)
    return tuple((int(i), min(int(i) + 1, size - 1), float(w)) for i, w in zip(first, weights, strict=True))


def depth_to_space(reader: Reader, node: ir.Node) -> None:
    """Read DepthToSpace as its reshape, transpose, reshape."""
    x, tail = any_tensor(reader, node)
    n, c, h, w = x.shape
    b = int_attribute(node, "blocksize", 1)
    crd = attribute(node, "mode", "DCR") == "CRD"
    sizes = (n, c // b**2, b, b, h, w) if crd else (n, b, b, c // b**2, h, w)
    _rearranged(reader, node, x, tail, sizes, (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2))


def space_to_depth(reader: Reader, node: ir.Node) -> None:
    """Read SpaceToDepth as its reshape, transpose, reshape."""
    x, tail = any_tensor(reader, node)
    n, c, h, w = x.shape
    b = int_attribute(node, "blocksize", 1)
    _rearranged(reader, node, x, tail, (n, c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4))


def _rearranged(
    reader: Reader, node: ir.Node, x: L.Tensor, tail: Tail, sizes: tuple[int, ...], perm: tuple[int, ...]
) -> None:
    output, nodes = tensor_of(tail.value, node, tail.quant), covers(node, *tail.nodes)
    wide = L.Tensor(f"{output.name}_blocks", sizes, tail.quant)
    moved = L.Tensor(f"{output.name}_moved", tuple(sizes[axis] for axis in perm), tail.quant)
    reader.layers.append(L.Reshape((x,), wide, nodes))
    reader.layers.append(L.Transpose((wide,), moved, nodes, perm))
    reader.take(*tail.nodes)
    reader.emit(L.Reshape((moved,), output, nodes), tail.value)
    reader.sequence.add(output.name)
