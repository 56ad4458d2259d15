"""What a popcount kernel does with a sum when its result is a real number: a list of operations per channel.

Every operation rounds as the model's own operator does in docs/semantics.md: products and sums in float32,
BatchNorm in float64 and once to float32. So a real-valued stream between binary layers (the shortcuts of
Bi-Real nets) carries the reference's own bits, and no sign behind it flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .bits import Code

Array = npt.NDArray[np.generic]

# Constants of each operation: their types.
CONSTANTS = {
    "mul": ("float32",),
    "add": ("float32",),
    "div": ("float32",),
    "affine64": ("float64", "float64"),
    "clip": (),
    "residual": (),
}


@dataclass(frozen=True)
class RealOp:
    """One operation on the value so far.

    Attributes:
        name: `mul`, `add`, `div` by a constant per channel in float32; `affine64`: `x * scale + shift` in
            float64, rounded once to float32; `clip`; `residual`: plus the kernel's next float32 input.
        low, high: limits of `clip`.
    """

    name: Literal["mul", "add", "div", "affine64", "clip", "residual"]
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class RealEnd:
    """The operations, and what is stored.

    Attributes:
        ops: the first reads the sum, exact in float32.
        bits: the code of a second output, the result compared with float32 thresholds; None without.
        kept: the real result is stored.
        signed: the result is multiplied by -1 in some channels before it is compared.
    """

    ops: tuple[RealOp, ...]
    bits: Code | None = None
    kept: bool = True
    signed: bool = False

    @property
    def residuals(self) -> int:
        """How many float32 inputs are added."""
        return sum(op.name == "residual" for op in self.ops)

    @property
    def constants(self) -> tuple[str, ...]:
        """Types of the constants of `ops`, in order."""
        return tuple(dtype for op in self.ops for dtype in CONSTANTS[op.name])


def pack_constants(end: RealEnd, constants: Sequence[Array], lanes: int) -> list[Array]:
    """Return the constants [OC] of `end.ops` as [lanes] in their types; spare lanes are 1."""
    assert len(constants) == len(end.constants), f"{len(constants)} constants, need {len(end.constants)}"
    packed: list[Array] = []
    for array, dtype in zip(constants, end.constants, strict=True):
        wide = np.ones(lanes, dtype)
        wide[: array.size] = array
        packed.append(wide)
    return packed


def pack_limits(end: RealEnd, thresholds: Array, sign: Array | None) -> list[Array]:
    """Return float32 thresholds [OC, levels - 1] as [levels - 1, OC], and the signs [OC] if there are any."""
    assert end.bits is not None, "nothing is compared"
    assert thresholds.shape[1] == end.bits.thresholds, f"{thresholds.shape} thresholds"
    limits = np.ascontiguousarray(thresholds.T, np.float32)
    if not end.signed:
        return [limits]
    assert sign is not None, "signs are missing"
    return [limits, np.ascontiguousarray(sign, np.float32)]
