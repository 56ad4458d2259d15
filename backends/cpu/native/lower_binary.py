"""Kernels for layers on bits. A bit tensor lies as words [N, H, W, words * planes], see kernels/bits.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np

from . import layers as L
from . import layers_binary as B
from .kernels import binarize, conv_binary, dense_binary, pool_binary, unpack_bits
from .kernels.binarize import BinarizeSpec
from .kernels.bits import Integers, words_of
from .kernels.conv_binary import ConvBinarySpec, Output
from .kernels.dense_binary import DenseBinarySpec
from .kernels.int8_tiles import NO_BORDER, Image
from .kernels.pool_binary import PoolBinarySpec
from .kernels.real_end import RealEnd, RealOp
from .kernels.unpack_bits import UnpackBitsSpec
from .kernels.window import Window
from .layers_binary import Array
from .place import Builder, Held, Unfit, View, fits
from .program import padded


def words_for(builder: Builder, tensor: L.Tensor) -> Held:
    """Make the buffer of a tensor of bits."""
    assert tensor.book is not None, f"{tensor.name} has no bits"
    n, c, h, w = tensor.image
    words = words_of(c) * tensor.book.code.planes
    held = Held(builder.dense(tensor.name, "uint32", (n, h, w, words)), "uint32", Image(n, h, w, c, c))
    builder.where[tensor.name] = held
    return held


def _bits(builder: Builder, tensor: L.Tensor) -> Held:
    held = builder.where[tensor.name]
    assert isinstance(held, Held), "bits lie in our layout"
    return held


# --- quantizers -------------------------------------------------------------------------------------


def _binarize(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, B.Binarize), "the table says so"
    assert layer.output.book is not None, "bits out"
    x = _values(builder, layer.inputs[0])
    i, code = x.image, layer.output.book.code
    dtype = cast('Literal["float32", "uint8"]', x.dtype)
    spec = BinarizeSpec(i.batch * i.height * i.width, i.channels, i.pitch, dtype, code)
    fits(binarize.supports(spec, builder.isa))
    made, limits = words_for(builder, layer.output), layer.limits
    sign = np.where(limits.falls, -1, 1)
    constants = builder.constants(
        layer.output.name, lambda: binarize.pack(spec, np.asarray(limits.thresholds), sign)
    )
    builder.step("binarize", spec, [x.buffer], constants, made.buffer, layer.covers)


def _values(builder: Builder, tensor: L.Tensor) -> Held:
    """Return a tensor with its channels innermost and without a border: pixels one after the other."""
    where = builder.where[tensor.name]
    n, c, h, w = tensor.image
    if isinstance(where, View) and where.contiguous and h * w == 1 and where.dtype == "float32":
        return Held(where.buffer, where.dtype, Image(n, h, w, c, c))
    held = builder.image_of(tensor)
    i = held.image
    if i.border == NO_BORDER:
        return held
    bare = Image(i.batch, i.height, i.width, i.channels, padded(i.channels))
    buffer = builder.dense(f"{tensor.name}_inside", held.dtype, bare.shape)
    made = Held(buffer, held.dtype, bare)
    builder.move(held.side(), held.buffer, made, (i.batch, i.height, i.width, i.channels), "copy")
    return made


def _unpack(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, B.Unpack), "the table says so"
    x, book = _bits(builder, layer.inputs[0]), layer.inputs[0].book
    assert book is not None, "bits in"
    if x.image.channels != layer.output.channels:
        raise Unfit("unpacks a flattened image")
    i, made = x.image, builder.floats_for(layer.output)
    spec = UnpackBitsSpec(i.batch * i.height * i.width, i.channels, book.code)
    constants = builder.constants(layer.output.name, lambda: unpack_bits.pack(spec, book.scale))
    builder.step("unpack_bits", spec, [x.buffer], constants, made.buffer, layer.covers)


def _pool(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, B.BitPool), "the table says so"
    x, book = _bits(builder, layer.inputs[0]), layer.output.book
    assert book is not None, "bits out"
    i, w = x.image, layer.window
    window = Window(i.batch, i.height, i.width, w.kernel, w.strides, w.pads)
    spec = PoolBinarySpec(window, i.channels, book.code)
    fits(pool_binary.supports(spec, builder.isa))
    made = words_for(builder, layer.output)
    builder.step("pool_binary", spec, [x.buffer], (), made.buffer, layer.covers)


# --- products ---------------------------------------------------------------------------------------


def _spec(
    layer: B.BitSums | B.BitReals, base: B.Base, i: Image, output: Output
) -> ConvBinarySpec | DenseBinarySpec:
    """Return the spec over the image as it lies: behind a Flatten the window is the whole image."""
    book, outs = layer.inputs[0].book, layer.output.channels
    assert book is not None, "bits in"
    window = layer.window
    if (i.channels, i.height, i.width) != layer.inputs[0].image[1:]:
        window = L.Window((i.height, i.width))
    if i.height * i.width == 1 and window == L.Window((1, 1)):
        return DenseBinarySpec(i.batch, i.channels, outs, book.code, base.code, output)
    return ConvBinarySpec(
        i.batch, i.height, i.width, i.channels, outs, window.kernel, window.strides, window.pads,
        window.dilations, book.code, base.code, output,
    )  # fmt: skip


def _family(spec: ConvBinarySpec | DenseBinarySpec) -> str:
    return "dense_binary" if isinstance(spec, DenseBinarySpec) else "conv_binary"


def _pack(
    spec: ConvBinarySpec | DenseBinarySpec,
    codes: Integers,
    thresholds: Array | None = None,
    constants: Sequence[Array] = (),
    sign: Array | None = None,
) -> list[Array]:
    """Pack weights in the order of the image that the layer reads."""
    if isinstance(spec, DenseBinarySpec):
        flat = codes.reshape(len(codes), -1)
        return dense_binary.pack(spec, flat, thresholds=thresholds, constants=constants, sign=sign)
    image = codes.reshape(len(codes), spec.channels, *spec.kernel)
    return conv_binary.pack(spec, image, thresholds=thresholds, constants=constants, sign=sign)


def _sums(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, B.BitSums), "the table says so"
    assert layer.output.book is not None, "bits out"
    x = _bits(builder, layer.inputs[0])
    spec = _spec(layer, layer.base, x.image, layer.output.book.code)
    _fits(builder, spec)
    made, base = words_for(builder, layer.output), layer.base
    constants = builder.constants(
        layer.output.name, lambda: _pack(spec, base.codes, np.asarray(layer.limits.thresholds))
    )
    builder.step(_family(spec), spec, [x.buffer], constants, made.buffer, layer.covers)


def _fits(builder: Builder, spec: ConvBinarySpec | DenseBinarySpec) -> None:
    family = dense_binary if isinstance(spec, DenseBinarySpec) else conv_binary
    fits(family.supports(spec, builder.isa))


def _reals(builder: Builder, layer: L.Layer) -> None:
    """Write one pass per base; each adds its product to that of the passes before."""
    assert isinstance(layer, B.BitReals), "the table says so"
    x = _bits(builder, layer.inputs[0])
    before: list[str] = []
    for index, base in enumerate(layer.bases[:-1]):
        steps = _product_steps(layer, index)
        partial = L.Tensor(f"{layer.output.name}_base{index}", layer.output.shape)
        spec = _spec(layer, base, x.image, _end(steps))
        _fits(builder, spec)
        made = builder.floats_for(partial)
        constants = builder.constants(partial.name, _packer(spec, base, steps))
        in_place = 1 if before else None
        inputs = [x.buffer, *before]
        builder.step(_family(spec), spec, inputs, constants, made.buffer, layer.covers, in_place)
        before = [made.buffer]
    _last_pass(builder, layer, x, before)


def _last_pass(builder: Builder, layer: B.BitReals, x: Held, before: Sequence[str]) -> None:
    steps = [*_product_steps(layer, len(layer.bases) - 1), *layer.steps]
    base, limits, end = layer.bases[-1], layer.limits, _end(steps)
    others = [builder.image_of(tensor).buffer for tensor in layer.inputs[1:]]
    if layer.bits is not None and limits is not None and layer.bits.book is not None:
        end = replace(end, bits=layer.bits.book.code, kept=layer.kept, signed=bool(limits.falls.any()))
    spec = _spec(layer, base, x.image, end)
    _fits(builder, spec)
    made = [builder.floats_for(layer.output).buffer] if layer.kept else []
    made += [words_for(builder, layer.bits).buffer] if layer.bits is not None else []
    constants = builder.constants(layer.output.name, _packer(spec, base, steps, limits))
    reals = [*before, *others]
    in_place = 1 if reals and layer.kept else None
    builder.step(
        _family(spec), spec, [x.buffer, *reals], constants, made[0], layer.covers, in_place, more=made[1:]
    )


def _product_steps(layer: B.BitReals, index: int) -> list[B.Step]:
    """Return what makes a real number of a base's sum, added to those before it."""
    base, bias = layer.bases[index], layer.bias if index == 0 else None
    single = base.scale.astype(np.float32)
    exact = bias is None and bool((single == base.scale).all())
    zero = np.zeros(len(base.scale))
    wide = B.Step(RealOp("affine64"), (base.scale, zero if bias is None else bias))
    first = B.Step(RealOp("mul"), (single,)) if exact else wide
    steps = [] if exact and bool((single == 1).all()) else [first]
    return [*steps, B.Step(RealOp("residual"))] if index else steps


def _end(steps: Sequence[B.Step]) -> RealEnd:
    return RealEnd(tuple(step.op for step in steps))


def _packer(
    spec: ConvBinarySpec | DenseBinarySpec,
    base: B.Base,
    steps: Sequence[B.Step],
    limits: B.Limits | None = None,
) -> Callable[[], list[Array]]:
    constants = [array for step in steps for array in step.constants]
    thresholds = None if limits is None else np.asarray(limits.thresholds)
    sign = None if limits is None else np.where(limits.falls, -1, 1)
    return lambda: _pack(spec, base.codes, thresholds, constants, sign)


BINARY_RULES: Mapping[tuple[type[L.Layer], bool], Callable[[Builder, L.Layer], None]] = {
    (B.Binarize, False): _binarize,
    (B.Binarize, True): _binarize,
    (B.BitPool, False): _pool,
    (B.BitReals, False): _reals,
    (B.BitSums, False): _sums,
    (B.Unpack, False): _unpack,
}
