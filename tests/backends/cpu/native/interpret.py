"""A slow NumPy interpreter of fused layers: what a layer means, without kernels or layouts."""

from __future__ import annotations

import numpy as np

from pared.backends.cpu.native import layers as L
from pared.backends.cpu.native.real_product import RealProduct


def run(layers, arrays):
    """Run layers on named arrays (uint8 where quantized); returns every tensor by name."""
    known = dict(arrays)
    for layer in layers:
        operands = [known[x.name] for x in layer.inputs]
        known[layer.output.name] = RULES[type(layer)](layer, *operands)
    return known


def enter(tensor, array):
    """Return a model input as its tensor holds it."""
    return (array.astype(np.int16) + 128).astype(np.uint8) if tensor.quant and tensor.quant.signed else array


def leave(tensor, array):
    """Return a model output in its ONNX type."""
    return (array.astype(np.int16) - 128).astype(np.int8) if tensor.quant and tensor.quant.signed else array


def patches(x, window, fill):
    """Return [N, C, OH, OW, kh, kw]."""
    top, left, bottom, right = window.pads
    wide = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(wide, reach, axis=(2, 3))
    (sh, sw), (dh, dw) = window.strides, window.dilations
    return views[:, :, ::sh, ::sw, ::dh, ::dw]


def convolve(x, weight, window, group):
    x = x.reshape(*x.shape, *(1,) * (4 - x.ndim))
    n, outs = x.shape[0], weight.shape[0]
    parts = patches(x, window, 0)
    parts = parts.reshape(n, group, -1, *parts.shape[2:])
    kernels = weight.reshape(group, outs // group, *weight.shape[1:])
    sums = np.einsum("ngchwij,gmcij->ngmhw", parts, kernels, optimize=True)
    return sums.reshape(n, outs, *parts.shape[3:5])


def dequantize(quant, q):
    return (q.astype(np.int32) - quant.zero).astype(np.float32) * np.float32(quant.scale)


def quantize(quant, x, low=0, high=255):
    steps = np.rint(x.astype(np.float32) / np.float32(quant.scale)).astype(np.float64) + quant.zero
    return np.clip(steps, low, high).astype(np.uint8)


def channels(array, rank):
    return array.reshape(1, -1, *(1,) * (rank - 2))


def int_layer(layer, x, residual=None):
    quant = layer.inputs[0].quant
    exact = convolve(
        (x.astype(np.int32) - quant.zero).astype(np.float64),
        layer.weight.astype(np.float64),
        layer.window,
        layer.group,
    )
    total = (exact + channels(layer.bias, 4)).astype(np.float32)
    steps = np.rint(total * channels(layer.factor, 4))
    inner = layer.residual
    own = inner.inner if inner else layer.output.quant
    ends = (inner.inner_low, inner.inner_high) if inner else (layer.low, layer.high)
    y = np.clip(steps.astype(np.float64) + own.zero, *ends).astype(np.uint8)
    y = y.reshape(layer.output.shape)
    if inner:
        both = dequantize(inner.inner, y) + dequantize(layer.inputs[1].quant, residual)
        y = quantize(layer.output.quant, both, layer.low, layer.high)
    return y


def float_layer(layer, x, residual=None):
    y = convolve(x.astype(np.float64), layer.weight.astype(np.float64), layer.window, layer.group)
    y = (y + channels(layer.bias, 4)).reshape(layer.output.shape).astype(np.float32)
    y = y if residual is None else y + residual
    return np.clip(y, np.float32(layer.low), np.float32(layer.high))


def real_product(layer, x):
    whole = x.reshape(x.shape[0], -1).astype(np.int64) - layer.inputs[0].quant.zero
    y = ((whole @ layer.weight.T.astype(np.int64)) * layer.unit.astype(np.float64)).astype(np.float32)
    return np.clip(y + layer.bias, np.float32(layer.low), np.float32(layer.high))


def pool(layer, x):
    quant = layer.inputs[0].quant
    if layer.kind == "max":
        return patches(x, layer.window, 0 if quant else -np.inf).max((4, 5))
    real = dequantize(quant, x) if quant else x
    count = patches(np.ones_like(real), layer.window, 1 if layer.count_pads else 0).sum((4, 5))
    mean = (patches(real.astype(np.float64), layer.window, 0).sum((4, 5)) / count).astype(np.float32)
    return quantize(layer.output.quant, mean) if layer.output.quant else mean


def reals(layer, arrays):
    return [dequantize(t.quant, a) if t.quant else a for t, a in zip(layer.inputs, arrays, strict=True)]


def add(layer, *arrays):
    a, b = reals(layer, arrays)
    total = np.clip(a + b, np.float32(layer.low), np.float32(layer.high))
    return quantize(layer.output.quant, total) if layer.output.quant else total


def affine(layer, x):
    y = x * channels(layer.scale, x.ndim) + channels(layer.shift, x.ndim)
    return np.clip(y, np.float32(layer.low), np.float32(layer.high))


def convert(layer, x):
    source, target = layer.inputs[0].quant, layer.output.quant
    real = dequantize(source, x) if source else x
    return quantize(target, real) if target else real


def concat(layer, *arrays):
    joined = np.concatenate(reals(layer, arrays), 1)
    return quantize(layer.output.quant, joined) if layer.output.quant else joined


def softmax(layer, x):
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def lrn(layer, x):
    square = np.pad(
        x.astype(np.float64) ** 2, ((0, 0), ((layer.size - 1) // 2, layer.size // 2), (0, 0), (0, 0))
    )
    sums = sum(square[:, i : i + x.shape[1]] for i in range(layer.size))
    return (x / (layer.bias + layer.alpha / layer.size * sums) ** layer.beta).astype(np.float32)


RULES = {
    L.IntLayer: int_layer,
    L.FloatLayer: float_layer,
    L.Pool: pool,
    RealProduct: real_product,
    L.Add: add,
    L.Affine: affine,
    L.Clip: lambda layer, x: np.clip(x, np.float32(layer.low), np.float32(layer.high)),
    L.Concat: concat,
    L.Shuffle: lambda layer, x: x[:, list(layer.source)],
    L.Lrn: lrn,
    L.Softmax: softmax,
    L.Convert: convert,
    L.Reshape: lambda layer, x: x.reshape(layer.output.shape),
    L.Transpose: lambda layer, x: x.transpose(layer.perm),
}
