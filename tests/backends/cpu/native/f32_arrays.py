"""Float64 references and rigorous bounds for the float32 kernels, and how to call one on plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.kernels.window import Window, padded

UNIT = 2.0**-24  # unit roundoff of float32


def dot_bound(terms: int, size: np.ndarray) -> np.ndarray:
    """Worst error of a float32 sum of `terms` products whose absolute values sum to `size`, bias included.

    Higham's gamma: k u / (1 - k u) times sum |w||x|, for any order of summation, fused or not; 4 more
    roundings for bias, residual, scale and store. The wanted value itself is rounded once, in `size` too.
    """
    k = terms + 4
    return k * UNIT / (1 - k * UNIT) * size + 1e-37


def nhwc(x: np.ndarray, fill: float = 3.25) -> np.ndarray:
    """Return [N, C, H, W] as the kernels' [N, H, W, Cp]; the lanes beyond C hold rubbish."""
    n, c, h, w = x.shape
    out = aligned((n, h, w, padded(c)))
    out[...] = fill
    out[..., :c] = x.transpose(0, 2, 3, 1)
    return out


def nchw(x: np.ndarray, channels: int) -> np.ndarray:
    """Return the real channels of [N, H, W, Cp] as [N, C, H, W]."""
    return x[..., :channels].transpose(0, 3, 1, 2)


def matrix(x: np.ndarray, fill: float = 3.25) -> np.ndarray:
    """Return [M, K] with rows padded to whole vectors of rubbish."""
    out = aligned((x.shape[0], padded(x.shape[1])))
    out[...] = fill
    out[:, : x.shape[1]] = x
    return out


def aligned(shape: Sequence[int]) -> np.ndarray:
    """Return zeros on a 64-byte border."""
    from pared.backends.cpu.native.kernels.common import aligned_array

    return aligned_array(shape, "float32")


def run(
    family: ModuleType, spec, arrays: Sequence[np.ndarray], out_shape: Sequence[int], isa: Isa | None = None
) -> np.ndarray:
    """Build and run a kernel in two ranges of tasks; `arrays` are inputs and constants in order."""
    from pared.backends.cpu.native.kernels.common import load_kernel
    from pared.backends.cpu.native.kernels.math_f32 import vectors_of

    isa = isa or host_isa()
    verdict = family.supports(spec, isa)
    assert verdict.ok, verdict.reason
    with vectors_of(isa):
        module = family.build(spec, isa)
    kernel = load_kernel(module, isa)
    out = aligned(out_shape)
    out[...] = np.nan
    scratch = [aligned(shape) for shape in getattr(spec, "scratch", ())]
    given = [_aligned_copy(array) for array in arrays]
    middle = spec.tasks() // 2
    kernel(*given, out, *scratch, middle, spec.tasks())
    kernel(*given, out, *scratch, 0, middle)
    return out


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    from pared.backends.cpu.native.kernels.common import aligned_array

    out = aligned_array(array.shape, array.dtype.name)
    out[...] = array
    return out


def patches(x: np.ndarray, window: Window, fill: float = 0.0) -> np.ndarray:
    """Return [N, C, OH, OW, kh, kw] in float64, padding filled; what lies beyond the padding too."""
    top, left, _, _ = window.pads
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
    oh, ow = window.out_height, window.out_width
    height = max((oh - 1) * sh + (kh - 1) * dh + 1, top + x.shape[2])
    width = max((ow - 1) * sw + (kw - 1) * dw + 1, left + x.shape[3])
    wide = np.full((*x.shape[:2], height, width), fill)
    wide[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    rows = (np.arange(oh) * sh)[:, None] + np.arange(kh) * dh
    columns = (np.arange(ow) * sw)[:, None] + np.arange(kw) * dw
    return wide[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def conv(x: np.ndarray, w: np.ndarray, window: Window, groups: int = 1) -> np.ndarray:
    """Return the convolution in float64, [N, OC, OH, OW]."""
    parts = np.split(patches(x.astype(np.float64), window), groups, axis=1)
    kernels = np.split(w.astype(np.float64), groups, axis=0)
    return np.concatenate(
        [np.einsum("ncyxrs,ocrs->noyx", p, k) for p, k in zip(parts, kernels, strict=True)], axis=1
    )
