"""Where rank-N tensors lie, and how they meet images.

Every tensor has a `View`: a buffer, an offset, and one stride per axis of the model's own shape. Transposes,
slices, splits, broadcasts and most reshapes only make another view of the same memory. What writes a rank-N
tensor writes it row-major, last axis innermost; rows of 16 elements or more begin on whole vectors, so that a
matrix product reads and writes them as they lie ([rows, K padded]).

An image (`place.Held`, NHWC) is read through its view like everything else, its border and padding lanes left
out. The other way, an image kernel that wants a view gets a copy in NHWC (`Builder.held`), except vectors
that lie as a held one would. Quantized tensors in memory of ours are uint8 in both forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import layers as L
from .kernels import chain_f32, join_f32
from .kernels.chain_f32 import ChainF32Spec
from .kernels.join_f32 import JoinF32Spec, Part
from .kernels.strided import LANES, Operand, merged
from .place import Builder, Held, Unfit, View, fits, row_major
from .program import padded


def view_of(builder: Builder, tensor: L.Tensor) -> View:
    """Return where a tensor lies, under its own shape; a flattened image may have to be copied first."""
    where = builder.where[tensor.name]
    if isinstance(where, View):
        return where
    i = where.image
    shape = (i.batch, i.channels, i.height, i.width)
    base = View(where.buffer, where.dtype, i.bytes, shape, (i.plane, 1, i.row, i.pitch), i.origin)
    return base if shape == tensor.shape else _under(builder, base, tensor)


def _under(builder: Builder, view: View, tensor: L.Tensor) -> View:
    """Return a view under the shape of `tensor`, copied where strides cannot say it."""
    found = reshaped(view, tensor.shape)
    if found is None:
        again = reshaped(copied(builder, view, tensor.name), tensor.shape)
        assert again is not None, "a row-major copy takes every shape"
        found = again
    return found


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """Return the view under another shape, None where its elements have no such strides."""
    strides = [0] * len(shape)
    old = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    new = [(axis, n) for axis, n in enumerate(shape) if n != 1]
    i = j = 0
    while i < len(old) and j < len(new):
        sizes, wanted, i0, j0 = old[i][0], new[j][1], i, j
        while sizes != wanted:
            if sizes < wanted:
                i += 1
                sizes *= old[i][0]
            else:
                j += 1
                wanted *= new[j][1]
        if any(old[k][1] != old[k + 1][1] * old[k + 1][0] for k in range(i0, i)):
            return None
        step = old[i][1]
        for k in range(j, j0 - 1, -1):
            strides[new[k][0]] = step
            step *= new[k][1]
        i, j = i + 1, j + 1
    for axis in range(len(shape) - 1, -1, -1):
        if shape[axis] == 1:
            strides[axis] = strides[axis + 1] * shape[axis + 1] if axis + 1 < len(shape) else 1
    return replace(view, shape=tuple(shape), strides=tuple(strides))


def dense_for(builder: Builder, name: str, shape: tuple[int, ...], dtype: str = "float32") -> View:
    """Make a row-major buffer whose rows begin on whole vectors."""
    return _buffer(builder, name, shape, dtype, pitch_of(shape))


def _buffer(builder: Builder, name: str, shape: tuple[int, ...], dtype: str, pitch: int) -> View:
    memory = (*shape[:-1], pitch)
    buffer = builder.dense(name, dtype, memory)
    size = int(np.prod(memory, dtype=np.int64))
    return View(buffer, dtype, size, shape, row_major(memory) if shape else ())


def pitch_of(shape: Sequence[int]) -> int:
    """Return the elements from one row to the next; short rows are not padded."""
    last = shape[-1] if shape else 1
    return padded(last) if last >= LANES else last


def copied(builder: Builder, view: View, name: str, *, pitch: int = 0, covers: Sequence[str] = ()) -> View:
    """Return a copy in row-major order, without gaps unless a pitch is asked for."""
    made = _buffer(builder, name, view.shape, view.dtype, pitch or (view.shape[-1] if view.shape else 1))
    copy(builder, view, made, covers)
    return made


def copy(builder: Builder, source: View, target: View, covers: Sequence[str] = ()) -> None:
    """Add a step that copies elements as they are."""
    sizes, (given, made) = merged(source.shape, [operand(source), operand(target)])
    if source.dtype == "float32":
        spec = ChainF32Spec(sizes, (given,), made)
        fits(chain_f32.supports(spec, builder.isa))
        builder.step("chain_f32", spec, (source.buffer,), (), target.buffer, covers)
        return
    parts = JoinF32Spec((Part(sizes, given, made),))
    fits(join_f32.supports(parts, builder.isa))
    builder.step("join_f32", parts, (source.buffer,), (), target.buffer, covers)


def operand(view: View, quant: L.Quant | None = None) -> Operand:
    """Return a view as an operand of a kernel, over the axes of its shape."""
    pair = None if quant is None else (quant.scale, quant.zero - (128 if view.dtype == "int8" else 0))
    return Operand(view.size, view.strides, view.offset, view.dtype, pair)


def spread(view: View, shape: Sequence[int]) -> View:
    """Return a view broadcast to `shape`, as NumPy does it."""
    missing = len(shape) - len(view.shape)
    strides = [0] * missing + [
        0 if have == 1 and want != 1 else stride
        for have, stride, want in zip(view.shape, view.strides, shape[missing:], strict=True)
    ]
    return replace(view, shape=tuple(shape), strides=tuple(strides))


def as_rows(builder: Builder, view: View, name: str) -> View:
    """Return a view that is its buffer as [rows, K padded], copied where it is not."""
    length = view.shape[-1]
    rows = int(np.prod(view.shape[:-1], dtype=np.int64))
    flat = reshaped(view, (rows, length))
    pitch = padded(length)
    if flat is not None and not flat.offset and flat.size == rows * pitch:
        step, last = flat.strides
        if (rows == 1 or step == pitch) and (length == 1 or last == 1):
            return flat
    again = reshaped(copied(builder, view, f"{name}_rows", pitch=pitch), (rows, length))
    assert again is not None, "rows are row-major"
    return again


def made_for(builder: Builder, tensor: L.Tensor, image: bool) -> View:
    """Make the memory of a result: an image's or vector's where it is one, rows otherwise.

    Quantized images have no border here; readers that need one get a copy.
    """
    if not image:
        dtype = "float32" if tensor.quant is None else "uint8"
        made = dense_for(builder, tensor.name, tensor.shape, dtype)
        builder.where[tensor.name] = made
        return made
    if tensor.quant is None:
        builder.floats_for(tensor)
        return view_of(builder, tensor)
    n, c, h, w = tensor.image
    pitch = padded(c)
    buffer = builder.dense(tensor.name, "uint8", (n, h, w, pitch))
    strides = (h * w * pitch, 1, w * pitch, pitch)[: len(tensor.shape)]
    made = View(buffer, "uint8", n * h * w * pitch, tensor.shape, strides)
    builder.where[tensor.name] = made
    return made


def batches(batch: tuple[int, ...], operands: Sequence[Operand]) -> tuple[tuple[int, ...], list[Operand]]:
    """Join the outer axes where all operands run on; the last two axes of each stay."""
    outer, joined = merged(batch, [replace(one, strides=one.strides[:-2]) for one in operands])
    return outer, [
        replace(one, strides=(*some.strides, *one.strides[-2:]))
        for one, some in zip(operands, joined, strict=True)
    ]


# --- layers that only look at memory otherwise ------------------------------------------------------------


def reshape(builder: Builder, layer: L.Reshape) -> None:
    """Give a tensor another shape; images that are flattened stay images."""
    source, target = layer.inputs[0], layer.output
    where = builder.where[source.name]
    if isinstance(where, Held) and len(source.shape) in (2, 4) and len(target.shape) in (2, 4):
        n, c, h, w = source.image
        if target.image == (n, c, h, w) or target.shape == (n, c * h * w):
            builder.where[target.name] = where
            return
    builder.where[target.name] = _under(builder, view_of(builder, source), target)


def transpose(builder: Builder, layer: L.Transpose) -> None:
    """Transpose a tensor without moving it: its readers follow the strides."""
    view = view_of(builder, layer.inputs[0])
    shape, strides = (tuple(pair[axis] for axis in layer.perm) for pair in (view.shape, view.strides))
    builder.where[layer.output.name] = replace(view, shape=shape, strides=strides)


def close_output(builder: Builder, tensor: L.Tensor) -> None:
    """Write a tensor to a port of the model."""
    if tensor.quant is None and tensor.dtype != "float32":
        raise Unfit(f"output {tensor.name!r} is {tensor.dtype}; outputs are floats or bytes")
    if len(tensor.shape) in (2, 4):
        builder.close_output(tensor)
        return
    view = view_of(builder, tensor)
    if tensor.quant is not None and tensor.quant.signed != (view.dtype == "int8"):
        raise Unfit(f"a signed output of {len(tensor.shape)} axes; images have 4, vectors 2")
    size = int(np.prod(tensor.shape, dtype=np.int64))
    name = builder.open_output(tensor)
    copy(builder, view, View(name, view.dtype, size, tensor.shape, row_major(tensor.shape)))
