"""Kernels of the own operators: thin wrappers around the NumPy references in `compiler/ops`."""

from __future__ import annotations

import numpy as np

from ...compiler.ops.bipolar_quant import bipolar_quant
from ...compiler.ops.common import FINN_DOMAIN, PARED_DOMAIN, QONNX_DOMAIN
from ...compiler.ops.dynamic_blocks import LEVELS, block_steps
from ...compiler.ops.multithreshold import multithreshold
from ...compiler.ops.neurons import PARAMETERS, state_count, step
from ...compiler.ops.quant import quant
from ...compiler.ops.trunc import trunc_by_scale, trunc_by_width
from .base import Array, Kernel, active_jitter, jittered


def jittered_steps(node: Kernel, x: Array, scale: Array, levels: int) -> Array:
    """Return `x` disturbed in units of `scale`; untouched, bit for bit, while no jitter is active."""
    return (
        x if active_jitter.get() is None else np.asarray(jittered(node, x / scale, levels) * scale, x.dtype)
    )


class Quant(Kernel):
    """QONNX Quant."""

    op_domain = QONNX_DOMAIN

    def _run(
        self,
        x: Array,
        scale: Array,
        zero_point: Array,
        bit_width: Array,
        signed: int = 1,
        narrow: int = 1,
        rounding_mode: str = "ROUND",
    ) -> tuple[Array]:
        x = jittered_steps(self, x, scale, 2 ** int(np.max(bit_width)))
        return (quant(x, scale, zero_point, bit_width, bool(signed), bool(narrow), rounding_mode),)


class BipolarQuant(Kernel):
    """QONNX BipolarQuant."""

    op_domain = QONNX_DOMAIN

    def _run(self, x: Array, scale: Array) -> tuple[Array]:
        return (bipolar_quant(x, scale),)


class Trunc(Kernel):
    """QONNX Trunc, both signatures."""

    op_domain = QONNX_DOMAIN

    def _run(
        self,
        x: Array,
        scale: Array,
        zero_point: Array,
        in_bits: Array,
        fourth: Array,
        out_bits: Array | None = None,
        rounding_mode: str = "FLOOR",
        narrow: int = 0,
        signed: int = 1,
    ) -> tuple[Array]:
        x = jittered_steps(self, x, scale, 2 ** int(np.max(in_bits)))
        if out_bits is None:
            return (trunc_by_width(x, scale, zero_point, in_bits, fourth, rounding_mode),)
        flags = (bool(signed), bool(narrow), rounding_mode)
        return (trunc_by_scale(x, scale, zero_point, fourth, out_bits, *flags),)


class DynamicBlockQuantize(Kernel):
    """int8 in blocks of the last axis."""

    op_domain = PARED_DOMAIN

    def _run(self, x: Array, block_size: int = 32) -> tuple[Array, Array]:
        steps, scale = block_steps(x.astype(np.float32, copy=False), block_size)
        whole = np.clip(np.rint(jittered(self, steps, 2 * LEVELS + 1)), -LEVELS, LEVELS)
        return whole.astype(np.int8).reshape(x.shape), scale


class Neuron(Kernel):
    """One step of spiking neurons."""

    op_domain = PARED_DOMAIN

    def _run(self, x: Array, *rest: Array, kind: str = "") -> tuple[Array, ...]:
        states = state_count(kind)
        given = dict(zip(PARAMETERS[kind], rest[states:-1], strict=True))
        results = step(kind, float(rest[-1]), given, x.astype(np.float32, copy=False), rest[:states])
        return tuple(np.asarray(found) for found in results)


class MultiThreshold(Kernel):
    """FINN MultiThreshold."""

    op_domain = FINN_DOMAIN

    def _run(
        self,
        x: Array,
        thresholds: Array,
        out_dtype: str = "",
        out_scale: float = 1.0,
        out_bias: float = 0.0,
        data_layout: str = "",
    ) -> tuple[Array]:
        return (multithreshold(x, thresholds, float(out_scale), float(out_bias), data_layout),)
