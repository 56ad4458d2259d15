"""Attention in one kernel: sizes, which of them it takes, and its launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .lowbit_written import CPP, Written

# Rows of a warp, and columns that a product takes at once.
ROWS, STEP = 16, 16
# Widest heads whose registers suffice; float32 has three parts of each number in them.
_WIDEST = {"float16": 128, "bfloat16": 128, "float32": 64}
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
# Blocks that keep a chip of a hundred multiprocessors busy.
_BUSY_BLOCKS = 128


@dataclass(frozen=True)
class Shape:
    """Sizes, and how the operands lie.

    Attributes:
        batch, heads: products of their own.
        rows, keys: of q, of k and v.
        depth, width: columns of q and k, of v.
        scale: of the scores, before the mask is added.
        data: type of all operands.
        q, k, v, out: elements from one batch, head and row to the next; columns lie behind each other.
        mask: elements from one batch, head, row and column to the next; none without a mask.
    """

    batch: int
    heads: int
    rows: int
    keys: int
    depth: int
    width: int
    scale: float
    data: str
    q: tuple[int, int, int]
    k: tuple[int, int, int]
    v: tuple[int, int, int]
    out: tuple[int, int, int]
    mask: tuple[int, ...]


def takes(shape: Shape) -> bool:
    """Say whether the kernel computes this: whole fragments per head, loads of 16 bytes."""
    vector = 16 // _BYTES.get(shape.data, 16)
    aligned = all(step % vector == 0 for steps in (shape.q, shape.k, shape.v) for step in steps)
    widest = _WIDEST.get(shape.data, 0)
    whole = shape.depth % STEP == 0 and shape.width % 8 == 0
    return aligned and whole and 0 < shape.depth <= widest and 0 < shape.width <= widest


def write(sizes: Mapping[str, object]) -> Written:
    """Return the kernel of a `Shape`."""
    shape = Shape(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})  # type: ignore[arg-type]
    keys = 64 if shape.data != "float32" and shape.keys > 32 else 32
    slices = shape.batch * shape.heads
    warps = 4
    while warps > 1 and -(-shape.rows // (ROWS * warps)) * slices < _BUSY_BLOCKS:
        warps //= 2
    data, masked = CPP[shape.data], bool(shape.mask)
    numbers = (shape.rows, shape.keys, shape.depth, shape.width, keys, warps, str(masked).lower())
    steps = (*shape.q, *shape.k, *shape.v, *shape.out, *(shape.mask or (0, 0, 0, 0)))
    places = "{0}, {1}, {2}, {3}, {4}" if masked else "{0}, {1}, {2}, nullptr, {3}"
    call = (
        f"pared::attention<{data}, {', '.join(map(str, numbers))}>({places}, {float(shape.scale).hex()}f, "
        f"pared::Strides{{{{{', '.join(map(str, steps))}}}}});"
    )
    types = (*(f"const {data}* __restrict__",) * (3 + masked), f"{data}* __restrict__")
    grid = (-(-shape.rows // (ROWS * warps)), shape.heads, shape.batch)
    return Written("attention", types, call, grid, (32 * warps, 1, 1), False, f"attention-{keys}-w{warps}")
