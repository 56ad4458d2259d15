"""Networks and helpers shared by the tests of the pass `quantize`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
from small_models import graph, run, samples

from pared.compiler.ir.verifier import verify_graph
from pared.compiler.ort import optimized_model
from pared.compiler.pass_api import Context
from pared.passes.quantize.quantize import Quantize


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers that depend on the shape alone, whatever test asked for what before."""
    return np.random.default_rng(shape).normal(scale=scale, size=shape).astype(np.float32)


def conv_net() -> ir.Model:
    return graph(
        """g (float[1,3,12,12] x, float[8,3,3,3] w, float[8] b, float[4,8,1,1] v, float[4] c) =>
             (float[1,4,1,1] y)
        { [one] h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          [relu] r = Relu (h)
          [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
          [two] d = Conv (p, v, c)
          [gap] y = GlobalAveragePool (d) }""",
        w=normal(8, 3, 3, 3, scale=0.2), b=normal(8), v=normal(4, 8, 1, 1, scale=0.3), c=normal(4),
    )  # fmt: skip


def residual() -> ir.Model:
    return graph(
        """g (float[1,8,6,6] x, float[8,8,3,3] w, float[8,8,1,1] v, float[8,8,1,1] u) => (float[1,8,6,6] y)
        { [stem] a = Conv (x, u)
          [left] h = Conv <pads = [1, 1, 1, 1]> (a, w)
          [sum] s = Add (h, a)
          [relu] r = Relu (s)
          [last] y = Conv (r, v) }""",
        w=normal(8, 8, 3, 3, scale=0.1), v=normal(8, 8, 1, 1, scale=0.3), u=normal(8, 8, 1, 1, scale=0.3),
    )  # fmt: skip


def mlp() -> ir.Model:
    return graph(
        """g (float[1,16] x, float[16,32] w, float[32] b, float[32,4] v, float[4] c) => (float[1,4] y)
        { [one] h = Gemm (x, w, b)
          [relu] r = Relu (h)
          [two] y = Gemm (r, v, c) }""",
        w=normal(16, 32, scale=0.3), b=normal(32), v=normal(32, 4, scale=0.3), c=normal(4),
    )  # fmt: skip


NETS = {"conv": conv_net, "residual": residual, "mlp": mlp}


def data(model: ir.Model, count: int = 64) -> np.ndarray:
    shape = [int(size) for size in model.graph.inputs[0].shape or ()]
    return np.random.default_rng(7).normal(size=(count, *shape[1:])).astype(np.float32)


def quantized(model: ir.Model, exclude: tuple[str, ...] = (), x: np.ndarray | None = None, **options):
    options = {"inputs": "int8", "range": "minmax", **options}
    ctx = Context(calibration=samples(model, x=data(model) if x is None else x), exclude=exclude)
    draft = model.clone()
    stats = Quantize(**options).apply(draft, ctx)
    verify_graph(draft)
    return draft, stats


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def fused(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in optimized_model(model).graph.node)


def sqnr(model: ir.Model, other: ir.Model, **extra: np.ndarray) -> float:
    x = data(model, 16)
    want = np.stack([run(model, {"x": s[None]})["y"] for s in x])
    got = np.stack([run(other, {"x": s[None]})["y"] for s in x])
    return float(10 * np.log10(np.square(want).sum() / np.square(want - got).sum()))
