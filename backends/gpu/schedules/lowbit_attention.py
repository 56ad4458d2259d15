"""Attention in one kernel: sizes, which of them it takes, and its launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

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
        choice: the same of truth values that choose between a score and `fill`; none without them.
        keep: scores stay where the choice is this.
        fill: what is in the place of the others.
        late: the mask is added behind the choice.
        safe: the weights of a row whose scores are all -inf, or one NaN, are 0 and not NaN.
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
    choice: tuple[int, ...] = ()
    keep: bool = True
    fill: float = 0.0
    late: bool = False
    safe: bool = False


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
    data, masked, chosen = CPP[shape.data], bool(shape.mask), bool(shape.choice)
    numbers = (
        shape.rows, shape.keys, shape.depth, shape.width, keys, warps, masked + (masked and shape.late),
        chosen * (1 if shape.keep else 2), str(shape.safe).lower(),
    )  # fmt: skip
    given = [f"const {data}*"] * (3 + masked) + ["const unsigned char*"] * chosen + [f"{data}*"]
    places = [0, 1, 2, 3 if masked else None, 3 + masked if chosen else None, 3 + masked + chosen]
    pointers = ["nullptr" if place is None else f"{{{place}}}" for place in places]
    none = (0, 0, 0, 0)
    steps = (*shape.q, *shape.k, *shape.v, *shape.out, *(shape.mask or none), *(shape.choice or none))
    factors, strides = f"{_literal(shape.scale)}, {_literal(shape.fill)}", ", ".join(map(str, steps))
    call = (
        f"pared::attention<{data}, {', '.join(map(str, numbers))}>({', '.join(pointers)}, {factors}, "
        f"pared::Strides{{{{{strides}}}}});"
    )
    types = [f"{kind} __restrict__" for kind in given]
    grid = (-(-shape.rows // (ROWS * warps)), shape.heads, shape.batch)
    return Written("attention", types, call, grid, (32 * warps, 1, 1), False, f"attention-{keys}-w{warps}")


def _literal(number: float) -> str:
    """Return a float32 of C++; a number that is not finite is negative infinity."""
    return f"{float(number).hex()}f" if isfinite(number) else "-INFINITY"
