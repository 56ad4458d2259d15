"""Small graphs, and the way from a graph to an emulated device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from pared.backends.gpu.emulate import EmulatedDevice, describe
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.kernels import Kernels, build
from pared.backends.gpu.lower import one_sample
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.place import make_program
from pared.backends.gpu.program import Program
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.importer import import_model

ARCH = "sm_90"


def model_of(body: str, inputs: str, outputs: str, **constants: npt.ArrayLike) -> ir.Model:
    """Return the model of an ONNX text body; `constants` are its initializers."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return import_model(proto).model


def compiled(model: ir.Model) -> tuple[Program, bytes, Kernels, str]:
    """Return program, constants, kernels and the emulation of a model."""
    fixed, batched = one_sample(model)
    calls = calls_of(relax_module(fixed))
    kernels = build(calls.functions, ARCH)
    program, weights = make_program(calls, kernels.functions, signature_of(model), ARCH, batched=batched)
    return program, weights, kernels, describe(calls.functions, kernels.functions)


def emulated(model: ir.Model) -> GpuExecutable:
    """Return a model on a device that is none."""
    program, weights, _, emulation = compiled(model)
    return GpuExecutable(program, weights, [b"", b""], EmulatedDevice(emulation, ARCH))


def quantized_conv(
    rng: np.random.Generator, zero: int, *, group: int = 1, auto_pad: str = "NOTSET", kind: str = "uint8"
) -> ir.Model:
    """Return a quantized convolution of 4 channels with one scale per output channel."""
    m = 8
    constants = {
        "w": rng.integers(-127, 128, (m, 4 // group, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, m).astype(np.float32),
        "xs": np.float32(0.02).reshape(()), "xz": np.array(zero, kind),
        "ys": np.float32(rng.uniform(0.02, 0.2)).reshape(()), "yz": np.array(3, kind),
        "b": rng.integers(-3000, 3000, m).astype(np.int32), "bs": np.zeros(m, np.float32),
    }  # fmt: skip
    constants["bs"] = constants["xs"] * constants["ws"]
    pads = 'auto_pad = "SAME_UPPER"' if auto_pad != "NOTSET" else "pads = [1, 0, 2, 1]"
    body = f"""
        xr = DequantizeLinear(x, xs, xz)
        wr = DequantizeLinear<axis = 0>(w, ws)
        br = DequantizeLinear<axis = 0>(b, bs)
        c = Conv<{pads}, strides = [2, 1], group = {group}>(xr, wr, br)
        r = Relu(c)
        y = QuantizeLinear(r, ys, yz)
    """
    return model_of(body, f"{kind}[1,4,9,7] x", f"{kind}[1,{m},p,q] y", **constants)
