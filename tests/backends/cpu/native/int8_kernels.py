"""Runs int8 kernels through TVM, and an oracle in whole numbers, for the tests beside it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="needs pip install 'pared[tvm]'")

from pared.backends.cpu.native.isa import Isa, host_isa  # noqa: E402
from pared.backends.cpu.native.kernels import common  # noqa: E402
from pared.backends.cpu.native.kernels.int8_tiles import SLACK_BYTES, Image  # noqa: E402
from pared.compiler.backend import Array  # noqa: E402


@functools.cache
def host() -> Isa:
    """Return this machine's instruction set."""
    isa = host_isa()
    if not isinstance(isa, Isa):
        pytest.skip(isa.reason)
    return isa


def plain() -> Isa:
    """Return the host's set without AVX-512: the path of machines without VNNI."""
    isa = host()
    return Isa(isa.arch, tuple(f for f in isa.features if not f.startswith("avx512") and f != "avx_vnni"))


def run(module: tvm.IRModule, isa: Isa, arrays: Sequence[Array], tasks: int, pieces: int = 1) -> list[Array]:
    """Compile and call `main` on copies of `arrays`, in `pieces` ranges of tasks; return them afterwards."""
    kernel = tvm.compile(module, target=tvm.target.Target(isa.llvm_target))["main"]
    held = [tvm.runtime.tensor(_with_slack(a)) for a in arrays]
    views = [t._create_view(a.shape) for t, a in zip(held, arrays, strict=True)]
    bounds = [tasks * i // pieces for i in range(pieces + 1)]
    for begin, end in itertools.pairwise(bounds):
        kernel(*views, begin, end)
    return [v.numpy() for v in views]


def run_plain(
    module: tvm.IRModule, isa: Isa, arrays: Sequence[Array], tasks: int, pieces: int = 1
) -> list[Array]:
    """Do what `run` does through the C function that the engine calls: large buffers lie on the stack."""
    kernel = common.load_kernel(module, isa)
    held = [_with_slack(array) for array in arrays]
    bounds = [tasks * i // pieces for i in range(pieces + 1)]
    for begin, end in itertools.pairwise(bounds):
        kernel(*held, begin, end)
    return [flat[: array.size] for flat, array in zip(held, arrays, strict=True)]


def _with_slack(array: Array) -> Array:
    extra = -(-SLACK_BYTES // array.itemsize)
    return np.concatenate([array, np.full(extra, 99, array.dtype)])


def memory(image: Image, pixels: Array, zero: int, rng: np.random.Generator) -> Array:
    """Return the flat buffer of uint8 `pixels` [N, H, W, C]: border at `zero`, unused lanes at random."""
    whole = np.full(image.shape, zero, np.uint8)
    inner = inside(image, whole)
    inner[:] = rng.integers(0, 256, inner.shape)
    inner[..., : image.channels] = pixels
    return whole.ravel()


def inside(image: Image, flat: Array) -> Array:
    """Return the pixels [N, H, W, pitch] of a buffer, as a view."""
    top, left, _, _ = image.border
    return flat.reshape(image.shape)[:, top : top + image.height, left : left + image.width]


def border_of(image: Image, flat: Array) -> Array:
    """Return the bytes of the border."""
    mask = np.ones(image.shape, bool)
    inside(image, mask)[:] = False
    return flat.reshape(image.shape)[mask]


def convolve(x: Array, weight: Array, spec: object, zero: int) -> Array:
    """Return int64 sums [N, OH, OW, M] of `x` [N, H, W, C] less `zero`; `weight` [M, C / group, kh, kw]."""
    (kh, kw), (sh, sw), (dh, dw), (top, left) = spec.kernel, spec.strides, spec.dilations, spec.pads
    oh, ow = spec.y.height, spec.y.width
    n, h, w, c = x.shape
    height = max((oh - 1) * sh + (kh - 1) * dh + 1, h + top)
    width = max((ow - 1) * sw + (kw - 1) * dw + 1, w + left)
    padded = np.zeros((n, height, width, c), np.int64)
    padded[:, top : top + h, left : left + w] = x.astype(np.int64) - zero
    m, cg = weight.shape[:2]
    each = m // (c // cg)
    sums = np.zeros((n, oh, ow, m), np.int64)
    for r, s in np.ndindex(kh, kw):
        tap = padded[:, r * dh :, s * dw :][:, : (oh - 1) * sh + 1 : sh, : (ow - 1) * sw + 1 : sw]
        for g in range(c // cg):
            part = weight[g * each : (g + 1) * each, :, r, s].astype(np.int64)
            sums[..., g * each : (g + 1) * each] += tap[..., g * cg : (g + 1) * cg] @ part.T
    return sums


def requantize(sums: Array, factor: Array, zero: int, low: int, high: int) -> Array:
    """Return bytes as docs/semantics.md defines them."""
    steps = sums.astype(np.float32) * factor.astype(np.float32)
    return np.clip(np.rint(steps).astype(np.float64) + zero, low, high).astype(np.uint8)
