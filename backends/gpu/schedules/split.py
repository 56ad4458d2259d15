"""k split over blocks: products with few results and many terms, as two kernels (`apart.py`).

A block per tile of results leaves multiprocessors without work where tiles are fewer than they are; parts
of k are work for them. The rule: tiles are fewer than multiprocessors, k is 16 steps of 64 bytes or longer,
and by the estimate of `tiles.py` both kernels together take fewer clocks than one. Of all numbers of parts
the one with the fewest clocks is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import fallback, gemv
from .apart import Halves, halve, joined, part_length
from .apart_epilogue import map_epilogue
from .base import Chip, Entry, Named
from .gemm_form import Product, product_of
from .tensor_core import takes, tiled
from .tiles import DEPTH_BYTES, Size, Tile, blocks, clocks, exchanged, ranked

if TYPE_CHECKING:
    from tvm import tirx

_MOST_PARTS = 32
# Steps along k of 64 bytes.
_LONG = 16
# Numbers of parts that a device may time.
_TIMED = 3


def apart(function: tirx.PrimFunc, chip: Chip, parts: int) -> tirx.PrimFunc:
    """Return a function with a product as two kernels, k in so many parts; one part is as good as any number.

    Products that tensor cores do not take are mapped as elsewhere.

    Raises:
        ScheduleError: what stands around the product is not to be transformed.
    """
    halves = halve(function, parts)
    product = _mapped(halves, chip, tensor_cores=takes(function, chip))
    return joined(function, halves, product, map_epilogue(halves.epilogue))


def _mapped(halves: Halves, chip: Chip, *, tensor_cores: bool) -> tirx.PrimFunc:
    """Return the first half mapped to threads."""
    if tensor_cores:
        return tiled(halves.product, halves.form, _best_tile(_size(halves.form), halves.form, chip), chip)
    entries = [entry for entry in (*gemv.ENTRIES, *fallback.ENTRIES) if entry.takes(halves.product, chip)]
    mapped = entries[0].apply(halves.product, chip)
    assert mapped is not None, "the last rule takes every function"
    return mapped


def _size(product: Product) -> Size:
    return (product.extent("s"), product.extent("i"), product.extent("j"), product.extent("k"))


def _product(function: tirx.PrimFunc) -> Product:
    product = product_of(function)
    assert product is not None, "taken without a product"
    return product


def _best_tile(size: Size, product: Product, chip: Chip) -> Tile:
    return ranked(size, product.width(0), chip)[0]


def estimated(product: Product, parts: int, chip: Chip) -> float:
    """Return the estimated clocks of a product whose k is in parts; one part is one kernel."""
    s, i, j, _ = _size(product)
    length = part_length(product, parts)
    assert length is not None, f"k is not cut into {parts} parts"
    size = (s * parts, i, j, length)
    alone = clocks(_best_tile(size, product, chip), size, product.width(0), chip)
    return alone + exchanged(s * parts * i * j, chip) if parts > 1 else alone


def ranked_parts(product: Product, chip: Chip) -> list[int]:
    """Return all numbers of parts into which k is cut, those with the fewest estimated clocks first."""
    numbers = [parts for parts in range(2, _MOST_PARTS + 1) if part_length(product, parts) is not None]
    return sorted(numbers, key=lambda parts: estimated(product, parts, chip))


def _may(function: tirx.PrimFunc, chip: Chip) -> bool:
    """Tell whether tiles are fewer than multiprocessors and k is long."""
    if not takes(function, chip):
        return False
    product = _product(function)
    size = _size(product)
    few = blocks(_best_tile(size, product, chip), size) < chip.sms
    long = product.extent("k") * product.width(0) >= _LONG * DEPTH_BYTES
    return few and long and bool(ranked_parts(product, chip))


def _takes(function: tirx.PrimFunc, chip: Chip) -> bool:
    """Tell whether the best number of parts is estimated to beat one kernel."""
    if not _may(function, chip):
        return False
    product = _product(function)
    best = ranked_parts(product, chip)[0]
    return estimated(product, best, chip) < estimated(product, 1, chip)


def _apply(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc:
    return apart(function, chip, ranked_parts(_product(function), chip)[0])


def _others(function: tirx.PrimFunc, chip: Chip) -> Named:
    for parts in ranked_parts(_product(function), chip)[1:_TIMED]:
        yield f"split {parts}", apart(function, chip, parts)


# Before the tensor cores' own row where the rule is for it; behind, for a device to time, where it is not.
CHOSEN = Entry("split", _takes, _apply, _others)
TIMED = Entry("split", lambda f, chip: _may(f, chip) and not _takes(f, chip), _apply, _others)
