"""The two products that are measured alone: a chain of GEMVs by 4-bit weights, and an int8 GEMM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .nets import PERIOD, repeated, repeating

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Chain:
    """`count` products of a row [1, width] by matrices of 4-bit weights, each with weights of its own.

    So many that they do not fit in any cache of a GPU: one product alone would be read from there.

    Attributes:
        block: weights along a column that share a scale.
    """

    width: int = 4096
    block: int = 32
    count: int = 32

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.count} GEMVs of {self.width}x{self.width}, 4-bit weights in blocks of {self.block}"

    @property
    def weight_bytes(self) -> int:
        """What one product must read at least: half a byte per weight, two per scale, the row twice."""
        cells = self.width * self.width
        return cells // 2 + 2 * cells // self.block + 4 * self.width

    def layers(self) -> Iterator[tuple[Codes, Floats]]:
        """Yield integers [width, width] from -8 to 7 and scales [width / block, width] of every product."""
        for number in range(self.count):
            rng = np.random.default_rng((7, number))
            few = min(PERIOD, self.width)
            block = np.clip(np.rint(rng.standard_normal((self.width, few)) * 3.0), -8, 7).astype(np.int8)
            codes = repeated(block, self.width, 1)
            spread = 1.0 / (3.0 * self.width**0.5)
            scales = repeating(rng, (self.width // self.block, self.width), 0.1 * spread, spread, 1)
            yield codes, scales.astype(np.float16).astype(np.float32)

    def real(self) -> Iterator[Floats]:
        """Yield the matrices as they are meant, float32."""
        for codes, scales in self.layers():
            yield codes.astype(np.float32) * np.repeat(scales, self.block, axis=0)

    def sample(self) -> Floats:
        """Return an input."""
        return np.random.default_rng(1).standard_normal((1, self.width)).astype(np.float32)


@dataclass(frozen=True)
class Product:
    """An int8 product `saturate(rint(x @ w * factor))` of square matrices."""

    size: int = 4096
    x_scale: float = 0.05
    w_scale: float = 0.01

    @property
    def name(self) -> str:
        """For messages."""
        return f"int8 GEMM {self.size}^3"

    @property
    def y_scale(self) -> float:
        """Puts the spread of results at about 30 steps: x has a spread of 73, w of 40."""
        return self.x_scale * self.w_scale * 73.0 * 40.0 * float(self.size**0.5) / 30

    @property
    def factor(self) -> np.float32:
        """Of the int32 sum."""
        unit = np.float32(self.x_scale) * np.float32(self.w_scale)
        return np.float32(unit / np.float32(self.y_scale))

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.size**3

    def weights(self) -> Codes:
        """Return w."""
        real = repeating(np.random.default_rng(3), (self.size, self.size), 40.0, axis=1)
        return np.clip(np.rint(real), -127, 127).astype(np.int8)

    def sample(self) -> Codes:
        """Return x."""
        return np.random.default_rng(4).integers(-127, 128, (self.size, self.size), np.int8)

    def want(self, rows: int) -> Codes:
        """Return the first rows of the result, exactly: sums below 2^31, one rounding of their product."""
        total = self.sample()[:rows].astype(np.int64) @ self.weights().astype(np.int64)
        return np.asarray(np.clip(np.rint(total.astype(np.float32) * self.factor), -128, 127).astype(np.int8))
