"""Products by a library among a function's schedules: what a choice is called, which kernel it replaces."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .cublaslt import version_text
from .program import DeviceFunction, MatrixProduct
from .schedules.base import Chip
from .schedules.dense import Dense, dense_of
from .schedules.split import apart
from .schedules.table import alternatives, applied

if TYPE_CHECKING:
    from tvm import tirx

_NAME = re.compile(r"cublaslt (\d+)\.(\d+)\.(\d+) algorithm (\d+)")


@dataclass(frozen=True)
class LibraryChoice:
    """One of the library's algorithms, as decisions and reports name it.

    Attributes:
        version: of the library, as it numbers itself.
        rank: of the algorithm among those that it proposes.
    """

    version: int
    rank: int

    @property
    def name(self) -> str:
        """Among the names of schedules.

        >>> LibraryChoice(131000, 2).name
        'cublaslt 13.10.0 algorithm 2'
        """
        return f"cublaslt {version_text(self.version)} algorithm {self.rank}"


def read_choice(name: str) -> LibraryChoice | None:
    """Return the choice of that name; None for a schedule's.

    >>> read_choice("cublaslt 13.10.0 algorithm 2"), read_choice("tensor-core")
    (LibraryChoice(version=131000, rank=2), None)
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    major, minor, patch, rank = (int(part) for part in found.groups())
    return LibraryChoice(10000 * major + 100 * minor + patch, rank)


def product_of_library(function: tirx.PrimFunc) -> MatrixProduct | None:
    """Return the product that a library may do for an unscheduled function; its buffers count 0, 1 and 2."""
    dense = dense_of(function)
    return None if dense is None else _product(dense, LibraryChoice(0, 0), (0, 1, 2))


def _product(dense: Dense, choice: LibraryChoice, buffers: tuple[int, int, int]) -> MatrixProduct:
    a, b, c = buffers
    return MatrixProduct(
        dtype=dense.dtype, result=dense.result, rows=dense.rows, columns=dense.columns, depth=dense.depth,
        b_by_columns=dense.b_by_columns, a=a, b=b, c=c, version=choice.version, rank=choice.rank,
    )  # fmt: skip


def around_product(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    """Return a function scheduled so that its first kernel is the product alone; None where none is."""
    dense = dense_of(function)
    if dense is None:
        return None
    if not dense.c:
        return applied(lambda whole, chip: apart(whole, chip, 1), function, chip)
    return next((f for _, f in alternatives(function, chip) if not _has_scratch(f)), None)


def _has_scratch(scheduled: tirx.PrimFunc) -> bool:
    return any(buffer.scope() == "global" for buffer in scheduled.body.block.alloc_buffers)


def by_library(made: DeviceFunction, function: tirx.PrimFunc, choice: LibraryChoice) -> DeviceFunction:
    """Return a function whose first kernel a library may stand in for.

    Args:
        made: of `around_product`.
        function: unscheduled.
        choice: of the library.
    """
    dense = dense_of(function)
    assert dense is not None, "a library's choice for no product"
    first, *others = made.kernels
    (c,) = [n for n, name in enumerate(first.parameters) if name not in (dense.a, dense.b)]
    sums = made.scratch.get(first.parameters[c])
    assert sums is None or (sums.shape, sums.dtype) == ((dense.rows, dense.columns), dense.result), "sums"
    places = (first.parameters.index(dense.a), first.parameters.index(dense.b), c)
    return replace(made, kernels=(replace(first, product=_product(dense, choice, places)), *others))
