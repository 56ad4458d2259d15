"""Constants as half floats: rounded to nearest even, and what is lost on the way counted."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.pages import drop_pages
from ...compiler.ir.walk import constant, constant_tensor

Array = npt.NDArray[np.generic]

DTYPES: dict[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Largest and smallest normal numbers: (2 - 2^-10) 2^15 and 2^-14, (2 - 2^-7) 2^127 and 2^-126.
LARGEST: dict[str, float] = {"float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}
SMALLEST: dict[str, float] = {"float16": 2.0**-14, "bfloat16": 2.0**-126}


@dataclass(frozen=True)
class Rounded:
    """A constant as half floats.

    Attributes:
        array: the values, nearest even; what is beyond the range is infinite.
        peak: largest finite magnitude before.
        overflowed: finite values that became infinite.
        nonzero: values that were not 0.
        flushed: of these, how many became 0.
        subnormal: of these, how many have fewer digits now than normal half floats.
    """

    array: Array
    peak: float
    overflowed: int
    nonzero: int
    flushed: int
    subnormal: int

    @property
    def vanishes(self) -> bool:
        """Whether nothing is left of it."""
        return self.nonzero > 0 and self.flushed == self.nonzero


def round_constant(array: Array, dtype: np.dtype[np.generic]) -> Rounded:
    """Return a float32 constant in a half type."""
    with np.errstate(over="ignore", under="ignore"):
        half = array.astype(dtype)
    half.flags.writeable = False
    sizes = np.abs(half.astype(np.float32))
    before = np.abs(array.astype(np.float32))
    nonzero = int(np.count_nonzero(before))
    gone = nonzero - int(np.count_nonzero(sizes))
    finite = np.isfinite(before)
    return Rounded(
        half,
        float(before.max(initial=0.0, where=finite)),
        int(np.count_nonzero(finite & np.isinf(sizes))),
        nonzero,
        gone,
        int(np.count_nonzero((sizes > 0) & (sizes < SMALLEST[dtype.name]))),
    )


class Constants:
    """The constants of a model as half floats, each rounded once.

    Args:
        dtype: the half type.
    """

    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        self.dtype = dtype
        self._known: dict[ir.Value, Rounded] = {}

    def __getitem__(self, value: ir.Value) -> Rounded:
        if value not in self._known:
            array = constant(value)
            assert array is not None, f"{value.name} is not constant"
            self._known[value] = round_constant(array, self.dtype)
            drop_pages(constant_tensor(value))
        return self._known[value]
