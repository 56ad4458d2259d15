"""Kernels for float layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np

from . import layers as L
from . import lower_sparse
from .choose_f32 import Candidate, takes_strassen, takes_winograd
from .kernels import (
    conv_f32,
    depthwise_f32,
    elementwise_f32,
    gemm_f32,
    pool_f32,
    softmax_f32,
    strassen_f32,
    winograd_f32,
)
from .kernels.after_f32 import After
from .kernels.conv_f32 import ConvF32Spec
from .kernels.depthwise_f32 import DepthwiseF32Spec
from .kernels.elementwise_f32 import ElementwiseF32Spec, Kind, Op
from .kernels.gemm_f32 import GemmF32Spec, Pixels
from .kernels.pool_f32 import PoolF32Spec
from .kernels.softmax_f32 import SoftmaxF32Spec
from .kernels.strassen_f32 import StrassenF32Spec
from .kernels.window import Window, padded_vector
from .kernels.winograd_f32 import WinogradF32Spec
from .layers import Floats
from .place import Builder, Held, Unfit, View, fits


def window_of(tensor: L.Tensor, window: L.Window) -> Window:
    """Return the kernels' form of a window over an image."""
    n, _, h, w = tensor.image
    return Window(n, h, w, window.kernel, window.strides, window.pads, window.dilations)


def after(low: float, high: float, bias: bool = False, residual: bool = False) -> After:
    """Return an epilogue with clipping; infinite limits are none."""
    return After(bias, residual, low=None if low == -np.inf else low, high=None if high == np.inf else high)


LEAST_CHANNELS = 16


def _layer(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.FloatLayer), "the table says so"
    x = layer.inputs[0]
    channels = layer.output.channels
    if _sparse(builder, layer):
        return
    if len(x.shape) == 2 or _pointwise(layer):
        _gemm(builder, layer)
    elif 1 < layer.group == x.channels == channels:
        _depthwise(builder, layer)
    elif (spec := _winograd_spec(builder, layer)) is not None:
        _winograd(builder, layer, spec)
    else:
        _conv(builder, layer)


def _sparse(builder: Builder, layer: L.FloatLayer) -> bool:
    """Write a layer with a kernel for weights that are mostly zero, where that is faster."""
    if layer.group > 1 or not lower_sparse.is_sparse(layer.weight):
        return False
    x, weight = layer.inputs[0], layer.weight
    window, held = window_of(x, layer.window), None
    if len(x.shape) == 2 or _pointwise(layer):
        held = builder.held(x)
        if _is_flat(held, x):
            weight = np.ascontiguousarray(_by_lanes(weight[:, :, 0, 0].T, held).T)[:, :, None, None]
            window = Window(held.image.batch, 1, 1, (1, 1))
    epilogue = after(layer.low, layer.high, True, len(layer.inputs) > 1)
    form = lower_sparse.sparse_form(
        builder, window, weight, epilogue, lambda one: _dense_for(builder, layer, one, weight.shape[1])
    )
    if form is None:
        return False
    held = held or builder.image_of(x)
    second, in_place = _residual(builder, layer)
    made = builder.floats_for(layer.output)
    inputs = [held.buffer, *second]
    lower_sparse.write(builder, form, layer, inputs, made.buffer, weight, in_place)
    return True


def _dense_for(builder: Builder, layer: L.FloatLayer, one: Window, depth: int) -> Candidate:
    """Return the kernel of a layer as if all weights were there, for the window `one`."""
    residual, outs = len(layer.inputs) > 1, layer.output.channels
    epilogue = after(layer.low, layer.high, True, residual)
    if len(layer.inputs[0].shape) == 2 or _pointwise(layer):
        rows = one.batch * one.out_height * one.out_width
        pixels = None if one.strides == (1, 1) else Pixels(one.height, one.width, one.strides)
        halved = StrassenF32Spec(rows, depth, outs, epilogue, pixels)
        if takes_strassen(halved, builder.isa, residual, builder.dry):
            return Candidate("strassen_f32", halved, residual)
        return Candidate("gemm_f32", GemmF32Spec(rows, depth, outs, epilogue, pixels=pixels), residual)
    winograd = _winograd_spec(builder, layer)
    if winograd is not None:
        return Candidate("winograd_f32", replace(winograd, window=one), residual)
    return Candidate("conv_f32", ConvF32Spec(one, depth, outs, 1, epilogue), residual)


def _is_flat(held: Held, tensor: L.Tensor) -> bool:
    """Tell whether an image is read as a vector."""
    i = held.image
    return (i.channels, i.height, i.width) != tensor.image[1:]


def _pointwise(layer: L.FloatLayer) -> bool:
    """Tell whether a layer is a matrix product over all or some of its pixels."""
    window = layer.window
    if window.kernel != (1, 1) or any(window.pads) or layer.group > 1:
        return False
    return window.strides == (1, 1) or gemm_f32.fits_stack(layer.inputs[0].channels)


def _winograd_spec(builder: Builder, layer: L.FloatLayer) -> WinogradF32Spec | None:
    """Return the Winograd form of a layer where it exists and is predicted to be faster."""
    x, outs = layer.inputs[0], layer.output.channels
    if layer.group > 1 or min(x.channels, outs) < LEAST_CHANNELS:
        return None
    epilogue = after(layer.low, layer.high, True, len(layer.inputs) > 1)
    spec = WinogradF32Spec(window_of(x, layer.window), x.channels, outs, epilogue)
    if not winograd_f32.supports(spec, builder.isa).ok:
        return None
    one = replace(spec, window=replace(spec.window, batch=1))
    return spec if takes_winograd(one, builder.isa, epilogue.residual, builder.dry) else None


def _winograd(builder: Builder, layer: L.FloatLayer, spec: WinogradF32Spec) -> None:
    held = builder.image_of(layer.inputs[0])
    second, in_place = _residual(builder, layer)
    made = builder.floats_for(layer.output)
    name = layer.output.name
    constants = builder.constants(name, lambda: winograd_f32.pack(spec, layer.weight, layer.bias))
    scratch = [builder.scratch(name, "float32", shape) for shape in spec.scratch]
    inputs = [held.buffer, *second]
    builder.step("winograd_f32", spec, inputs, constants, made.buffer, layer.covers, in_place, scratch)


def _depthwise(builder: Builder, layer: L.FloatLayer) -> None:
    x = layer.inputs[0]
    held = builder.image_of(x)
    second, in_place = _residual(builder, layer)
    epilogue = after(layer.low, layer.high, True, bool(second))
    spec = DepthwiseF32Spec(window_of(x, layer.window), x.channels, epilogue)
    fits(depthwise_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    constants = builder.constants(
        layer.output.name, lambda: depthwise_f32.pack(spec, layer.weight, layer.bias)
    )
    inputs = [held.buffer, *second]
    builder.step("depthwise_f32", spec, inputs, constants, made.buffer, layer.covers, in_place)


def _pool(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Pool), "the table says so"
    x, window = layer.inputs[0], layer.window
    held = builder.image_of(x)
    whole = layer.kind == "average" and window.kernel == x.image[2:] and not any(window.pads)
    kind: Literal["max", "average", "global"] = "max" if layer.kind == "max" else "average"
    spec = PoolF32Spec(window_of(x, window), x.channels, "global" if whole else kind, layer.count_pads)
    fits(pool_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    builder.step("pool_f32", spec, [held.buffer], (), made.buffer, layer.covers)


def _residual(builder: Builder, layer: L.FloatLayer) -> tuple[list[str], int | None]:
    """Return the buffer that is added and its index among the inputs: the output may take its place."""
    if len(layer.inputs) == 1:
        return [], None
    return [builder.image_of(layer.inputs[1]).buffer], 1


def _gemm(builder: Builder, layer: L.FloatLayer) -> None:
    held = builder.held(layer.inputs[0])
    i = held.image
    weight = layer.weight[:, :, 0, 0].T
    flat = _is_flat(held, layer.inputs[0])
    rows = i.batch if flat else i.batch * int(np.prod(layer.output.image[2:]))
    apart = not flat and layer.window.strides != (1, 1)
    pixels = Pixels(i.height, i.width, layer.window.strides) if apart else None
    depth = i.height * i.width * i.pitch if flat else i.channels
    second, in_place = _residual(builder, layer)
    epilogue = after(layer.low, layer.high, True, bool(second))
    spec = GemmF32Spec(rows, depth, layer.output.channels, epilogue, pixels=pixels)
    fits(gemm_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    name, inputs = layer.output.name, [held.buffer, *second]
    halved = StrassenF32Spec(rows, depth, layer.output.channels, epilogue, pixels)
    one = replace(halved, rows=rows // i.batch)
    if not flat and takes_strassen(one, builder.isa, bool(second), builder.dry):
        constants = builder.constants(name, lambda: strassen_f32.pack(halved, weight, layer.bias))
        builder.step("strassen_f32", halved, inputs, constants, made.buffer, layer.covers, in_place)
        return
    constants = builder.constants(
        name, lambda: gemm_f32.pack(spec, _by_lanes(weight, held) if flat else weight, layer.bias)
    )
    builder.step("gemm_f32", spec, inputs, constants, made.buffer, layer.covers, in_place)


def _by_lanes(weight: Floats, held: Held) -> Floats:
    """Return weights [C * H * W, M] of a flattened image in the order of memory, [H * W * pitch, M]."""
    i = held.image
    image = weight.reshape(i.channels, i.height, i.width, -1).transpose(1, 2, 0, 3)
    wide = np.zeros((i.height, i.width, i.pitch, weight.shape[1]), np.float32)
    wide[:, :, : i.channels] = image
    return wide.reshape(-1, weight.shape[1])


def _conv(builder: Builder, layer: L.FloatLayer) -> None:
    x = layer.inputs[0]
    where = builder.where[x.name]
    nchw = isinstance(where, View) and where.contiguous and len(where.shape) == 4
    source = where if nchw else builder.image_of(x)
    second, in_place = _residual(builder, layer)
    spec = ConvF32Spec(
        window_of(x, layer.window), x.channels, layer.output.channels, layer.group,
        after(layer.low, layer.high, True, bool(second)), nchw,
    )  # fmt: skip
    fits(conv_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    constants = builder.constants(layer.output.name, lambda: conv_f32.pack(spec, layer.weight, layer.bias))
    # Lanes that are computed twice must not find their own result in the residual.
    in_place = None if spec.by_group else in_place
    builder.step("conv_f32", spec, [source.buffer, *second], constants, made.buffer, layer.covers, in_place)


def _elementwise(
    builder: Builder,
    layer: L.Layer,
    constants: Sequence[Floats],
    ops: Sequence[Op],
) -> None:
    """Write a chain over images of one shape; constants are one number per channel."""
    _chain(builder, layer.inputs, layer.output, constants, ops, layer.covers)


def _chain(
    builder: Builder,
    inputs: Sequence[L.Tensor],
    output: L.Tensor,
    constants: Sequence[Floats],
    ops: Sequence[Op],
    covers: Sequence[str],
) -> None:
    held = [builder.image_of(x) for x in inputs]
    n, c, h, w = output.image
    kinds = ("full",) * len(held) + ("channel",) * len(constants)
    spec = ElementwiseF32Spec(n * h * w, c, cast("tuple[Kind, ...]", kinds), tuple(ops), n)
    fits(elementwise_f32.supports(spec, builder.isa))
    made = builder.floats_for(output)
    packed = builder.constants(output.name, lambda: [padded_vector(array) for array in constants])
    builder.step("elementwise_f32", spec, [x.buffer for x in held], packed, made.buffer, covers, 0)


def _lrn(builder: Builder, layer: L.Layer) -> None:
    """Write x / (bias + alpha / size * sum of squares) ^ 0.75: the sums are a product with a band matrix."""
    assert isinstance(layer, L.Lrn), "the table says so"
    if layer.beta != 0.75:
        raise Unfit(f"beta {layer.beta}; the chain of square roots has 0.75")
    x, c = layer.inputs[0], layer.output.channels
    square = L.Tensor(f"{layer.output.name}_square", x.shape)
    total = L.Tensor(f"{layer.output.name}_sum", x.shape)
    _chain(builder, (x,), square, (), [Op("mul", (0, 0))], layer.covers)
    away = np.arange(c)[:, None] - np.arange(c)[None]
    band = (away <= layer.size // 2) & (away >= -((layer.size - 1) // 2))
    weight = (band.T * (layer.alpha / layer.size)).astype(np.float32)[:, :, None, None]
    bias = np.full(c, layer.bias, np.float32)
    _gemm(builder, L.FloatLayer((square,), total, layer.covers, weight, bias, L.Window((1, 1)), 1))
    root = [Op("sqrt", (1,)), Op("sqrt", (2,)), Op("mul", (2, 3)), Op("div", (0, 4))]
    _chain(builder, (x, total), layer.output, (), root, layer.covers)


def _clipping(value: int, low: float, high: float) -> list[Op]:
    """Return the clipping of an earlier value, if there is any."""
    if low == -np.inf and high == np.inf:
        return []
    return [Op("clip", (value,), low, high)]


def _add(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Add), "the table says so"
    ops = [Op("add", (0, 1)), *_clipping(2, layer.low, layer.high)]
    _elementwise(builder, layer, (), ops)


def _affine(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Affine), "the table says so"
    ops = [Op("mul", (0, 1)), Op("add", (3, 2)), *_clipping(4, layer.low, layer.high)]
    _elementwise(builder, layer, (layer.scale, layer.shift), ops)


def _clip(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Clip), "the table says so"
    _elementwise(builder, layer, (), [Op("clip", (0,), layer.low, layer.high)])


def _softmax(builder: Builder, layer: L.Layer) -> None:
    held = builder.image_of(layer.inputs[0])
    spec = SoftmaxF32Spec(held.image.batch, layer.output.channels)
    fits(softmax_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    builder.step("softmax_f32", spec, [held.buffer], (), made.buffer, layer.covers, 0)


FLOAT_RULES: Mapping[type[L.Layer], Callable[[Builder, L.Layer], None]] = {
    L.Add: _add,
    L.Affine: _affine,
    L.Clip: _clip,
    L.FloatLayer: _layer,
    L.Lrn: _lrn,
    L.Pool: _pool,
    L.Softmax: _softmax,
}
