"""Inputs of layers in one or two bits: thresholds and scales from calibration data.

One bit: `BipolarQuant(x - t)` with `t` the mean of each input channel, the best threshold of two levels when
the data lie evenly around it. XNOR-Net (arXiv 1603.05279) computes its `K` from every input at run time; here
weights and bias are fitted to the layer's outputs on the bits themselves, which contains a `K` per layer as
well as what the bits leave out on average. Two bits: `Quant` with the step of least squared error, unsigned
where no input is negative. Zeros that pad an image stay zeros between the bits -1 and 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import walk
from ...compiler.ir.quant import QuantParams, QuantSpec, Scheme
from ...compiler.pass_api import Context
from ..prune.reconstruct import FittedLayer, Sums
from ..quantize.calibrate import observe
from ..quantize.emit import Emitter

Floats = npt.NDArray[np.floating]
Width = Literal["float", "binary", "2bit"]


def narrow_input(
    model: ir.Model, layer: FittedLayer, sums: Sums, width: Width, samples: Samples, ctx: Context
) -> ir.Value:
    """Quantize what a layer reads; returns what it read before."""
    node = layer.weight.uses[0].node
    x = node.inputs[0]
    assert x is not None, f"{node.name} reads something"
    out = Emitter(model)
    if width == "binary":
        made = _bits(out, x, _channel_means(layer, sums))
    else:
        made = [_two_bits(out, x, samples, ctx)]
    out.insert(made, x)
    node.replace_input_with(0, made[-1])
    return x


def widen_input(layer: FittedLayer, before: ir.Value) -> None:
    """Undo `narrow_input`."""
    node = layer.weight.uses[0].node
    quantizer = node.inputs[0]
    assert quantizer is not None, f"{node.name} was narrowed"
    node.replace_input_with(0, before)
    maker = quantizer.producer()
    assert maker is not None, f"{quantizer.name} is made by a quantizer"
    walk.remove_chain(maker)


def least_noise(sums: Sums, damping: float) -> float:
    """Return the SQNR in dB that the best float weights and bias would reach on the inputs as they are."""
    n, noise, power = max(sums.count, 1), 0.0, 0.0
    for g in range(sums.groups):
        mean_x, mean_y = sums.x[g] / n, sums.y[g] / n
        gram = sums.xx[g] / n - np.outer(mean_x, mean_x)
        cross = sums.xy[g] / n - np.outer(mean_x, mean_y)
        gram[np.diag_indices_from(gram)] += damping * max(float(np.diag(gram).mean()), 1e-30)
        left = sums.yy[g] / n - mean_y**2 - np.einsum("kr,kr->r", cross, np.linalg.solve(gram, cross))
        noise += float(np.maximum(left, 0.0).sum())
        power += float((sums.yy[g] / n).sum())
    return 10.0 * float(np.log10(max(power, 1e-300) / max(noise, 1e-300)))


def _channel_means(layer: FittedLayer, sums: Sums) -> Floats:
    """Mean of each channel that the layer reads, in a shape that broadcasts over its input."""
    means = sums.x / max(sums.count, 1)
    if layer.weight.uses[0].node.op_type != "Conv":
        return means.reshape(1, -1)
    rank = len(layer.weight.view.shape)
    channels = layer.weight.view.shape[1] * layer.weight.view.groups
    per_channel: Floats = means.reshape(channels, -1).mean(axis=1)
    return per_channel.reshape(1, -1, *[1] * (rank - 2))


def _bits(out: Emitter, x: ir.Value, threshold: Floats) -> list[ir.Value]:
    base = str(x.name)
    constant = out.constant(threshold.astype(np.float32), f"{base}_threshold")
    centred = out.node("Sub", [x, constant], x, base=f"{base}_centred")
    spec = QuantSpec(1, scheme=Scheme.BIPOLAR)
    params = QuantParams(spec, np.asarray(1.0, np.float32), np.asarray(0, np.int64))
    return [centred, out.fake_quantize(centred, params, 0, f"{base}_bits")]


def _two_bits(out: Emitter, x: ir.Value, samples: Samples, ctx: Context) -> ir.Value:
    name = str(x.name)
    (found,) = observe(
        out.model, {name}, samples, "mse", spec=QuantSpec(2, signed=False), percentile=100.0, ctx=ctx
    ).values()
    signed = found.low < 0
    largest = max(abs(found.low), abs(found.high), 1e-12)
    spec = QuantSpec(2, signed=signed, narrow=signed)
    params = QuantParams(spec, np.asarray(largest / spec.qmax, np.float32), np.asarray(0, np.int64))
    return out.fake_quantize(x, params, 0, f"{name}_bits")
