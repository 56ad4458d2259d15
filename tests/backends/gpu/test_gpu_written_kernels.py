"""Kernels written by hand, launched alone: sizes and strides that small models do not reach.

Every buffer lies between pages that cannot be touched, and threads run in both orders (simulate/).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product as combinations

import numpy as np
import numpy.typing as npt
import pytest

from pared.backends.gpu.schedules import (
    lowbit,
    lowbit_attention,
    lowbit_binary,
    lowbit_blocks,
    lowbit_product,
    lowbit_sparse,
)
from pared.backends.gpu.schedules.lowbit_attention import Shape as Attention
from pared.backends.gpu.schedules.lowbit_binary import Pack
from pared.backends.gpu.schedules.lowbit_binary import Shape as Bits
from pared.backends.gpu.schedules.lowbit_written import Written
from pared.backends.gpu.simulate import simulate

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")

Array = npt.NDArray[np.generic]


def launch(written: Written, *buffers: Array) -> None:
    """Run a kernel; the last buffer holds its results then."""
    source = lowbit.source_of([("it", written)])
    simulate(source, "it_kernel", written.grid, written.block, 0, buffers, contract=not written.exact)


# --- bits -------------------------------------------------------------------------------------------

IMAGE = Bits(2, 7, 5, 40, 37, 3, 5, (3, 2), (2, 1), (1, 1), (1, 2), False, True, "float32")
GEOMETRIES = [
    IMAGE, replace(IMAGE, count=1, strides=(1, 3), pads=(0, 2), dilations=(2, 1), out_height=4, out_width=2),
    replace(IMAGE, channels=300, outputs=9, data="float16", bias=False),
]  # fmt: skip


def sums_of(shape: Bits, x: Array, w: Array) -> npt.NDArray[np.int64]:
    """Return sums [N, OH, OW, M] of x [N, H, W, C] and w [M, KH, KW, C], both -1 or 1; pads are 0."""
    pads = [(size, 16) for size in shape.pads]
    wide = np.pad(x.astype(np.int64), [(0, 0), *pads, (0, 0)])
    total = np.zeros((shape.count, shape.out_height, shape.out_width, shape.outputs), np.int64)
    for i, j in combinations(range(shape.kernel[0]), range(shape.kernel[1])):
        rows = np.arange(shape.out_height) * shape.strides[0] + i * shape.dilations[0]
        columns = np.arange(shape.out_width) * shape.strides[1] + j * shape.dilations[1]
        total += wide[:, rows[:, None], columns] @ w[:, i, j].astype(np.int64).T
    return total


def bits_of(shape: Bits) -> tuple[list[Array], npt.NDArray[np.int64]]:
    """Return packed data and weights at random, and their sums."""
    rng = np.random.default_rng(shape.channels)
    x = rng.choice([-1, 1], (shape.count, shape.height, shape.width, shape.channels))
    w = rng.choice([-1, 1], (shape.outputs, *shape.kernel, shape.channels))
    packed = [lowbit_binary.pack_signs(x > 0), lowbit_binary.pack_weights(w > 0, shape.vector)]
    return packed, sums_of(shape, x, w)


@pytest.mark.parametrize("shape", GEOMETRIES, ids=lambda s: f"{s.channels}-{s.strides}")
def test_sums_of_bits_are_exact_whatever_the_window(shape: Bits) -> None:
    packed, sums = bits_of(shape)
    rng = np.random.default_rng(0)
    scale, bias = rng.normal(size=(2, shape.outputs))
    y = np.zeros(sums.shape, shape.data)
    launch(lowbit_binary.write_product(asdict(shape)), *packed, scale, *([bias] * shape.bias), y)
    want = sums * scale + (bias if shape.bias else 0)
    assert np.array_equal(y, want.astype(np.float32).astype(shape.data))


@pytest.mark.parametrize("shape", GEOMETRIES, ids=lambda s: f"{s.channels}-{s.strides}")
def test_bits_of_sums_are_exact_and_zero_behind_the_last_channel(shape: Bits) -> None:
    shape = replace(shape, bits=True, bias=False)
    packed, sums = bits_of(shape)
    lowest = np.random.default_rng(1).integers(-9, 9, shape.outputs).astype(np.int32)
    lowest[:5] = sums[0, 0, 0, :5]
    y = np.zeros((*sums.shape[:3], -(-shape.outputs // 32)), np.uint32)
    launch(lowbit_binary.write_product(asdict(shape)), *packed, lowest, y)
    assert np.array_equal(y, lowbit_binary.pack_signs(sums >= lowest))


@pytest.mark.parametrize("columns", [40, 64])
def test_signs_of_zeros_are_positive_and_padded_with_zeros(columns: int) -> None:
    x = np.random.default_rng(columns).choice([-1.5, -0.0, 0.0, 2.0], (7, columns)).astype(np.float32)
    y = np.zeros((7, 2), np.uint32)
    launch(lowbit_binary.write_pack(asdict(Pack(7, columns, "float32"))), x, y)
    assert np.array_equal(y, lowbit_binary.pack_signs(x >= 0))


# --- codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "n", "k", "bits", "data"),
    [(70, 100, 64, 4, "float16"), (3, 48, 96, 2, "float16"), (5, 100, 96, 8, "float32")],
)
def test_a_product_by_codes_takes_any_number_of_tiles(m: int, n: int, k: int, bits: int, data: str) -> None:
    rng = np.random.default_rng(n)
    codes, zero = (rng.integers(0, 1 << bits, size).astype(np.uint8) for size in ((n, k), (n, k // 32)))
    scale, x = rng.uniform(0.01, 0.1, (n, k // 32)).astype(data), rng.normal(size=(m, k)).astype(data)
    y = np.zeros((m, n), data)
    shape = lowbit_product.Shape(m, n, k, bits, 32, -1, data, data, 0, False)
    launch(lowbit_product.write(asdict(shape)), x, lowbit_product.pack(codes, bits), scale, zero, y)
    of, at = (np.repeat(array, 32, axis=1).astype(np.float64) for array in (scale, zero))
    w, left = (codes - at) * of, x.astype(np.float64)
    want, size = left @ w.T, np.abs(left) @ np.abs(w).T
    rounding = 2.0**-11 if data == "float16" else 2.0**-24
    assert (np.abs(y - want) <= 2.0**-20 * size + rounding * np.abs(want)).all()


# --- blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "k", "block"), [(41, 40, 64, 32), (3, 24, 288, 96)])
def test_a_product_of_blocks_takes_any_number_of_rows(m: int, n: int, k: int, block: int) -> None:
    rng = np.random.default_rng(m)
    q, w = rng.integers(-127, 128, (m, k)).astype(np.int8), rng.integers(-8, 8, (n, k)).astype(np.int8)
    of_q, of_w = (rng.uniform(0.5, 2, (rows, k // block)).astype(np.float32) for rows in (m, n))
    bias, y = rng.normal(size=n).astype(np.float32), np.zeros((m, n), np.float32)
    shape = lowbit_blocks.Shape(m, n, k, block, True)
    launch(lowbit_blocks.write(asdict(shape)), q, of_q, lowbit_blocks.pack(w), of_w, bias, y)
    left, right = (np.repeat(s, block, axis=1).astype(np.float64) * x for s, x in ((of_q, q), (of_w, w)))
    size = np.abs(left) @ np.abs(right).T
    assert (np.abs(y - (left @ right.T + bias)) <= 2.0**-22 * size + 1e-6).all()


# --- 2:4 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["int8", "float16"])
def test_a_product_of_two_in_four_reads_no_data_behind_the_last_column(data: str) -> None:
    m, n, k, rng = 2, 40, 136, np.random.default_rng(2)
    w, x = (rng.integers(-99, 99, size).astype(data) for size in ((n, k), (m, k)))
    gone = rng.permuted(np.tile(range(4), (n * k // 4, 1)), axis=1)[:, :2]
    np.put_along_axis(w.reshape(-1, 4), gone, 0, axis=1)
    y = np.zeros((m, n), np.int32 if data == "int8" else np.float16)
    shape = lowbit_sparse.Shape(m, n, k, data, 0, False)
    x = x if data == "int8" else (x / np.float16(1024)).astype(data)
    launch(lowbit_sparse.write(asdict(shape)), x, *lowbit_sparse.pack(w), y)
    want = x.astype(np.float64) @ w.astype(np.float64).T
    assert np.array_equal(y, want.astype(y.dtype))


# --- attention --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lies:
    """In which order batch (0), head (1), row (2) and column (3) of q, k, v and the results lie."""

    q: Sequence[int] = (0, 1, 2, 3)
    k: Sequence[int] = (0, 2, 1, 3)
    v: Sequence[int] = (1, 0, 2, 3)
    out: Sequence[int] = (2, 0, 1, 3)


SIZES = {"batch": 2, "heads": 3, "rows": 70, "keys": 75, "depth": 16, "width": 24}
MASKS = [(2, 3, 70, 75), (1, 3, 1, 75), (2, 1, 70, 1)]


def steps(sizes: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Return elements from one index to the next of axes that lie in an order; 0 along axes of size 1."""
    count, found = 1, dict[int, int]()
    for axis in reversed(order):
        found[axis] = 0 if sizes[axis] == 1 else count
        count *= sizes[axis]
    return tuple(found[axis] for axis in range(len(sizes)))


def laid(x: Array, order: Sequence[int]) -> Array:
    """Return an array with its axes in another order in memory."""
    return np.ascontiguousarray(x.transpose(order))


def softmax_of(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Softmax over the last axis."""
    with np.errstate(invalid="ignore"):
        raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return raised / raised.sum(axis=-1, keepdims=True)


def attention_of(
    data: str, mask: Sequence[int], choice: Sequence[int], monkeypatch: pytest.MonkeyPatch, **how: object
) -> tuple[Array, npt.NDArray[np.float64]]:
    """Return what a kernel of four warps computes, and what it should; some rows have no score in a tile."""
    monkeypatch.setattr(lowbit_attention, "_BUSY_BLOCKS", 1)
    b, h, rows, keys, depth, width = SIZES.values()
    rng, lies = np.random.default_rng(len(mask) + 7 * len(choice)), Lies()
    shapes = {"q": (b, h, rows, depth), "k": (b, h, keys, depth), "v": (b, h, keys, width)}
    given = {name: rng.normal(size=size).astype(data) for name, size in shapes.items()}
    added = rng.normal(size=mask or (1,)).astype(data)
    kept = rng.uniform(size=choice or (1,)) < 0.6
    if choice:
        kept[..., :5, :66] = False
    where = {name: steps(size, getattr(lies, name))[:3] for name, size in shapes.items()}
    where["out"] = steps((b, h, rows, width), lies.out)[:3]
    at = {"mask": steps(mask, range(4)) if mask else (), "choice": steps(choice, range(4)) if choice else ()}
    shape = Attention(*SIZES.values(), 0.4, data, **where, **at, **how)  # type: ignore[arg-type]
    out = np.zeros([(b, h, rows, width)[axis] for axis in lies.out], data)
    more = [added] * bool(mask) + [kept.view(np.uint8)] * bool(choice)
    written = lowbit_attention.write(asdict(shape))
    assert written.schedule.endswith("w4")
    launch(written, *(laid(x, getattr(lies, name)) for name, x in given.items()), *more, out)
    q, k, v = (x.astype(np.float64) for x in given.values())
    scores = q @ k.swapaxes(2, 3) * 0.4
    extra = added.astype(np.float64) if mask else 0.0
    scores = scores if shape.late else scores + extra
    scores = np.where(kept == shape.keep, scores, shape.fill) if choice else scores
    scores = scores + extra if shape.late else scores
    return out.transpose(np.argsort(lies.out)), softmax_of(scores) @ v


@pytest.mark.parametrize(("data", "close"), [("float16", 4e-3), ("float32", 4e-6)])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_attention_of_four_warps_reads_everything_where_it_lies(
    data: str, close: float, mask: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    got, want = attention_of(data, mask, (), monkeypatch)
    assert np.abs(got - want).max() <= close


@pytest.mark.parametrize("choice", [(2, 3, 70, 75), (2, 1, 1, 75), (1, 3, 70, 1)], ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_attention_chooses_scores_after_a_mask_or_before(
    choice: Sequence[int], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = -np.inf if choice == (2, 3, 70, 75) and keep else -3.0
    got, want = attention_of("float32", MASKS[0], choice, monkeypatch, keep=keep, fill=fill, late=keep)
    assert np.abs(got - want).max() <= 4e-6
