"""What rules on bits share: tensors of bits, and codes behind a chain of operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from . import layers as L
from . import thresholds as th
from .kernels.bits import Code
from .layers import Codebook
from .reader import shape_of


def bits_of(value: ir.Value, node: ir.Node, book: Codebook) -> L.Tensor:
    """Return the tensor for the bit planes of a value; its name is not that of the unpacked value."""
    return L.Tensor(f"{value.name}_bits", shape_of(value, node), book=book)


def codes_of_chain(
    nodes: Sequence[ir.Node], reals: th.Array, book: Codebook, shape: tuple[int, ...]
) -> th.Integers:
    """Return the codes [A, C] that a chain gives for `reals` ([A] or [A, C]) in a tensor of `shape`."""
    return th.codes_of(th.evaluate_chain(nodes, reals, shape[1], len(shape)), book)


def smallest(book: Codebook, folded: th.Folded) -> tuple[Codebook, th.Folded]:
    """Return a ternary code that never is 0 as a binary one: Sign behind sums that are odd."""
    limits = folded.thresholds
    if book.code is not Code.TERNARY or not np.array_equal(limits[:, 0], limits[:, 1], equal_nan=True):
        return book, folded
    return Codebook(Code.BINARY, book.scale), th.Folded(limits[:, :1], folded.negate)
