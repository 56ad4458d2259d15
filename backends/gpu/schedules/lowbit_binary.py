"""Products of bits by exclusive or and population count: sizes, layout of weights, launches.

A lane owns an output channel, a warp 32 of them and a few outputs, whose words all lanes read at once.
Results that are bits again leave by one vote of the warp. (Tensor cores multiply bits too, but for sm_90
ptxas 13 makes a longer sequence of that instruction; population counts are the same on every chip.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .lowbit_written import BUSY_WARPS, CPP, LANES, MOST_WARPS, Written, warps_along_depth

WORD = 32


@dataclass(frozen=True)
class Pack:
    """Signs of `rows` rows of `columns` numbers of type `data`."""

    rows: int
    columns: int
    data: str


@dataclass(frozen=True)
class Shape:
    """A convolution of bits, channels last; a dense product has images of one pixel.

    Attributes:
        count, height, width, channels: of the data.
        outputs: output channels.
        out_height, out_width: of the results.
        kernel, strides, pads, dilations: (height, width); pads are those at the beginning.
        bits: results are bits.
        bias: numbers are added to real results.
        data: type of real results.
    """

    count: int
    height: int
    width: int
    channels: int
    outputs: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    bits: bool
    bias: bool
    data: str

    @property
    def words(self) -> int:
        """Words of a pixel."""
        return -(-self.channels // WORD)

    @property
    def vector(self) -> int:
        """Words that are loaded together."""
        return next(v for v in (4, 2, 1) if self.words % v == 0)


def pack_signs(positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Pack the last axis into words, lowest bit first; bits beyond its end are 0."""
    columns = -(-positive.shape[-1] // WORD) * WORD
    full = np.zeros((*positive.shape[:-1], columns), np.uint32)
    full[..., : positive.shape[-1]] = positive
    apart = full.reshape(*full.shape[:-1], columns // WORD, WORD)
    return np.asarray(np.bitwise_or.reduce(apart << np.arange(WORD, dtype=np.uint32), axis=-1), np.uint32)


def pack_weights(positive: npt.NDArray[np.bool_], vector: int) -> npt.NDArray[np.uint32]:
    """Lay weights [M, KH, KW, C] out for the kernel: [KH * KW * words / vector, M up to 32s, vector]."""
    words = pack_signs(positive).reshape(len(positive), -1, vector)
    full = np.zeros((-(-len(positive) // WORD) * WORD, *words.shape[1:]), np.uint32)
    full[: len(positive)] = words
    return np.ascontiguousarray(full.transpose(1, 0, 2))


def write_pack(sizes: Mapping[str, object]) -> Written:
    """Return the kernel of a `Pack`."""
    pack = Pack(**sizes)  # type: ignore[arg-type]
    data, words = CPP[pack.data], -(-pack.columns // WORD)
    call = f"pared::binary_pack<{data}, {pack.rows}, {pack.columns}, {words}>({{0}}, {{1}});"
    grid = -(-pack.rows * words // MOST_WARPS)
    types = (f"const {data}* __restrict__", "unsigned* __restrict__")
    return Written("binary", types, call, (grid, 1, 1), (LANES * MOST_WARPS, 1, 1), True, "binary-pack")


def write_product(sizes: Mapping[str, object]) -> Written:
    """Return the kernel of a `Shape`."""
    shape = Shape(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})  # type: ignore[arg-type]
    outputs, groups = shape.count * shape.out_height * shape.out_width, shape.words // shape.vector
    slices = -(-shape.outputs // WORD)
    pixels = next(p for p in (8, 4, 2, 1) if p == 1 or outputs * slices >= p * BUSY_WARPS)
    wk = warps_along_depth(outputs * slices, groups)
    wp = MOST_WARPS // wk if outputs > 1 else 1
    data = "unsigned" if shape.bits else CPP[shape.data]
    numbers = (
        shape.count, shape.height, shape.width, shape.channels, shape.outputs, shape.out_height,
        shape.out_width, *shape.kernel, *shape.strides, *shape.pads, *shape.dilations, shape.vector,
        pixels, wk, wp,
    )  # fmt: skip
    flags = f"{str(shape.bits).lower()}, {str(shape.bias).lower()}"
    places = ("{2}, nullptr, nullptr, {3}", "nullptr, {2}, nullptr, {3}", "nullptr, {2}, {3}, {4}")
    rest = places[0 if shape.bits else 1 + shape.bias]
    call = f"pared::binary_product<{data}, {flags}, {', '.join(map(str, numbers))}>({{0}}, {{1}}, {rest});"
    last = ("const int*",) if shape.bits else ("const double*",) * (1 + shape.bias)
    types = [f"{kind} __restrict__" for kind in ("const unsigned*", "const unsigned*", *last, f"{data}*")]
    grid = (-(-outputs // (pixels * wp)), slices, 1)
    name = f"binary-product-{pixels}-k{wk}-p{wp}"
    return Written("binary", types, call, grid, (LANES * wk * wp, 1, 1), True, name)
