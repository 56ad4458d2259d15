"""Which kernel computes a float layer: predicted where one is clearly faster, timed where they are close.

Predictions and trials are of one image, so that batches decide alike. A trial runs the kernels on random
numbers; both are compiled through the cache of objects, so the winner is not compiled again.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np

from ....compiler.backend import Array
from ....compiler.temporary import folder_prefix
from . import timing
from .isa import Isa
from .kernels import gemm_f32, strassen_f32, winograd_f32
from .kernels.conv_f32 import ConvF32Spec
from .kernels.gemm_f32 import GemmF32Spec
from .kernels.strassen_f32 import StrassenF32Spec
from .kernels.window import padded
from .kernels.winograd_f32 import WinogradF32Spec
from .link import link
from .program import KernelSpec

# What Winograd's products and the direct convolution reach on one core (kernels/winograd_f32.py), and how
# fast weights come that no cache holds. Ratios count, not the absolute values.
DIRECT_MACS_PER_NS = 52.0
WINOGRAD_PRODUCTS_PER_NS = 34.0
WEIGHT_BYTES_PER_NS = 25.0
CACHE_BYTES = 1 << 20

# Cycles of Strassen's scheme beyond its products, per 28 rows and 64 columns (kernels/strassen_f32.py).
KEEPING_CYCLES = 280.0
CYCLES_PER_SUM = 10.0

# Predicted ratios of the times within which kernels are timed.
CLOSE_WINOGRAD = (0.75, 1.4)
CLOSE_STRASSEN = (0.935, 1.05)


@dataclass(frozen=True)
class Candidate:
    """A kernel that could compute a layer of one image.

    Attributes:
        family: module of `kernels/`.
        in_place: it may overwrite an input.
    """

    family: str
    spec: KernelSpec
    in_place: bool


def takes_winograd(spec: WinogradF32Spec, isa: Isa, in_place: bool, dry: bool = False) -> bool:
    """Tell whether Winograd's form of a layer beats the direct convolution."""
    direct = ConvF32Spec(spec.window, spec.channels, spec.out_channels, 1, spec.after)
    weights = 4 * winograd_f32.POINTS * spec.channels * padded(spec.out_channels)
    slow = weights / WEIGHT_BYTES_PER_NS if weights > CACHE_BYTES else 0.0
    predicted = spec.products() / WINOGRAD_PRODUCTS_PER_NS + slow
    ratio = predicted / (spec.macs() / DIRECT_MACS_PER_NS)
    one, other = Candidate("winograd_f32", spec, in_place), Candidate("conv_f32", direct, in_place)
    return _first_is_faster(one, other, ratio, CLOSE_WINOGRAD, isa, dry)


def takes_strassen(spec: StrassenF32Spec, isa: Isa, in_place: bool, dry: bool = False) -> bool:
    """Tell whether Strassen's form of a product exists and beats the plain one."""
    if not strassen_f32.supports(spec, isa).ok:
        return False
    plain = GemmF32Spec(spec.rows, spec.depth, spec.columns, spec.after, pixels=spec.pixels)
    if not gemm_f32.supports(plain, isa).ok:
        return True
    product = 28 * spec.depth / 2
    sums = strassen_f32.MOST_PAIRS * spec.depth / 32 * CYCLES_PER_SUM / (spec.columns / strassen_f32.COLUMNS)
    whole = spec.tiles * 2 * spec.pairs / spec.rows
    ratio = whole * (7 * product + KEEPING_CYCLES + sums) / (8 * product)
    one, other = Candidate("strassen_f32", spec, in_place), Candidate("gemm_f32", plain, in_place)
    return _first_is_faster(one, other, ratio, CLOSE_STRASSEN, isa, dry)


def _first_is_faster(
    one: Candidate, other: Candidate, ratio: float, close: tuple[float, float], isa: Isa, dry: bool
) -> bool:
    """Decide by the predicted ratio of the times, or by a trial where it says little."""
    guess = [one, other] if ratio < 1 else [other, one]
    if dry or not close[0] < ratio < close[1]:
        return guess[0] is one
    options = {candidate.family: partial(ready, candidate, isa) for candidate in guess}
    return timing.fastest(timing.Key(one.family, repr(one.spec)), options) == one.family


def ready(candidate: Candidate, isa: Isa, constants: Mapping[str, Array] | None = None) -> timing.Run:
    """Compile a kernel and return a run of all its tasks on random numbers.

    Args:
        candidate: the kernel.
        isa: what it may use.
        constants: values by the name of the parameter, where random ones will not do.

    Raises:
        MissingTool: there is no linker.
    """
    from .objects import Family, Kernel, compile_all

    family = cast(Family, import_module(f".kernels.{candidate.family}", __package__))
    kernel = Kernel(candidate.family, candidate.spec, candidate.in_place)
    code = compile_all([kernel], isa, lambda _: family)[0]
    with tempfile.TemporaryDirectory(prefix=folder_prefix("trial")) as folder:
        source, library = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        source.write_bytes(code)
        link([source], library, isa)
        function = ctypes.CDLL(str(library))[kernel.symbol]
    function.restype = None
    arrays = _arrays(family.build(candidate.spec, isa)["main"].params[:-2], constants or {})
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    call = partial(function, *pointers, ctypes.c_int32(0), ctypes.c_int32(candidate.spec.tasks()))
    return partial(_run, call, arrays)


def _run(call: timing.Run, arrays: Sequence[np.ndarray]) -> object:
    """Call; holding `arrays` keeps the memory behind the pointers alive."""
    return call()


def _arrays(parameters: Sequence[object], constants: Mapping[str, Array]) -> list[np.ndarray]:
    """Return `constants` or random values for the buffers of a kernel; its parameters have their shapes."""
    from .kernels.common import aligned_array

    rng = np.random.default_rng(0)
    arrays = []
    for parameter in parameters:
        known = constants.get(parameter.name)  # type: ignore[attr-defined]
        if known is not None:
            arrays.append(aligned_array(known.shape, known.dtype.name))
            arrays[-1][...] = known
            continue
        shape = [int(size) for size in parameter.ty.shape]  # type: ignore[attr-defined]
        array = aligned_array(shape, "float32")
        array[...] = rng.standard_normal(shape, np.float32)
        arrays.append(array)
    return arrays
