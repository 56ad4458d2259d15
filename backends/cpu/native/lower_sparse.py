"""Float layers whose weights are mostly zero: predicted, and timed beside the dense kernel where it is close.

Constants must not depend on whether the program is of one sample or of two (`compile._check_per_sample`), so
a batch of up to two is decided as one sample is. A larger batch is fixed in the model: its samples are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ....compiler.backend import Array
from . import layers as L
from . import timing
from .choose_f32 import DIRECT_MACS_PER_NS, WINOGRAD_PRODUCTS_PER_NS, Candidate, ready
from .isa import Isa
from .kernels import sparse_blocks_f32, sparse_f32
from .kernels.after_f32 import After
from .kernels.gemm_f32 import accumulators
from .kernels.sparse_blocks_f32 import SparseBlocksF32Spec
from .kernels.sparse_f32 import SparseF32Spec, Tile
from .kernels.window import LANES, Window, groups_of, padded
from .kernels.winograd_f32 import WinogradF32Spec
from .layers import Floats
from .place import Builder

# Shares of zeros below which no sparse kernel is tried.
LEAST_ZEROS = 0.3
LEAST_ZEROS_ANYWHERE = 0.35
LEAST_CHANNELS = 8
# Predicted ratios of the times, sparse to dense, within which both are timed.
CLOSE = (0.5, 1.5)

# Cycles of `sparse_f32`, fitted to runs on Zen 4 (docs/results/cpu_sparse_layers.md), and of a first-level
# cache that is too small; `sparse_blocks_f32` is as fast as dense code for what it keeps.
CYCLES_PER_NS = 3.6
NONZERO_CYCLES = 1.0
ROW_CYCLES = 4.0
TURN_CYCLES = 115.0
# A tile that reads from more memory than the translations of addresses reach.
FAR_BYTES = 160 << 10
FAR_TURN_CYCLES = 150.0
L1_BYTES = 40 << 10
BLOCK_MACS_PER_NS = 55.0
FEW_MACS_PER_NS = 20.0
MOST_VECTORS = 8


@dataclass(frozen=True)
class Form:
    """A sparse kernel for a layer.

    Attributes:
        family: module of `kernels/`.
        spec: of the whole batch.
        one: of what is decided for.
        nanoseconds: predicted for `one`.
    """

    family: str
    spec: SparseF32Spec | SparseBlocksF32Spec
    one: SparseF32Spec | SparseBlocksF32Spec
    nanoseconds: float


def is_sparse(weight: Floats) -> bool:
    """Tell whether a layer with weights [OC, C, kh, kw] is worth a closer look."""
    return weight.shape[1] >= LEAST_CHANNELS and _zeros(weight) >= LEAST_ZEROS


def _zeros(weight: Floats) -> float:
    return 1 - np.count_nonzero(weight) / max(weight.size, 1)


def sparse_form(
    builder: Builder, window: Window, weight: Floats, after: After, dense: Callable[[Window], Candidate]
) -> Form | None:
    """Return the sparse kernel that beats the dense one, or None.

    Args:
        builder: tells what may be used, and whether anything may be timed.
        window: of the layer, with its batch.
        weight: [OC, C, kh, kw].
        after: the epilogue.
        dense: gives the kernel that the layer has otherwise, for the window of what is decided for.
    """
    one = replace(window, batch=1) if window.batch <= 2 else window
    found = forms(builder.isa, (window, one), weight, after)
    best = min(found, key=lambda form: form.nanoseconds, default=None)
    if best is None:
        return None
    other = dense(one)
    ratio = best.nanoseconds / _dense_nanoseconds(other)
    if builder.dry or not CLOSE[0] < ratio < CLOSE[1]:
        return best if ratio < 1 else None
    return _timed(builder.isa, best, other, weight, ratio)


def _timed(isa: Isa, form: Form, other: Candidate, weight: Floats, ratio: float) -> Form | None:
    """Time both kernels for one sample."""
    options: dict[str, Callable[[], timing.Run]] = {
        form.family: partial(prepared, form, weight, isa, other.in_place),
        other.family: partial(ready, other, isa),
    }
    if ratio >= 1:
        options = dict(reversed(options.items()))
    key = timing.Key("sparse", f"{form.family} {form.one!r} or {other.family} {other.spec!r}")
    return form if timing.fastest(key, options) == form.family else None


def prepared(form: Form, weight: Floats, isa: Isa, in_place: bool = False) -> timing.Run:
    """Compile a sparse kernel and return a run of it on random data, for what is decided for."""
    bias = np.zeros(len(weight), np.float32) if form.one.after.bias else None
    packed = pack(form.one, weight, bias)
    constants = dict(zip(("values", "places", "pointers"), packed, strict=False))
    return ready(Candidate(form.family, form.one, in_place), isa, constants)


def write(
    builder: Builder, form: Form, layer: L.FloatLayer, inputs: list[str], output: str, weight: Floats,
    in_place: int | None,
) -> None:  # fmt: skip
    """Add the step of a sparse kernel; `weight` in the order of the data's memory."""
    name = layer.output.name
    constants = builder.constants(name, lambda: pack(form.spec, weight, layer.bias))
    shapes = form.spec.scratch if isinstance(form.spec, SparseF32Spec) else ()
    scratch = [builder.scratch(name, "float32", shape) for shape in shapes]
    builder.step(form.family, form.spec, inputs, constants, output, layer.covers, in_place, scratch)


def pack(
    spec: SparseF32Spec | SparseBlocksF32Spec, weight: Floats, bias: Floats | None = None
) -> list[Array]:
    """Return the constants of either kernel."""
    if isinstance(spec, SparseF32Spec):
        return sparse_f32.pack(spec, weight, bias)
    return sparse_blocks_f32.pack(spec, weight, bias)


# --- candidates -------------------------------------------------------------------------------------------


def forms(isa: Isa, windows: tuple[Window, Window], weight: Floats, after: After) -> Iterator[Form]:
    """Yield what can compute the first window; predictions are for the second one."""
    if windows[0].refusal():
        return
    yield from _by_blocks(isa, windows, weight, after)
    if _zeros(weight) >= LEAST_ZEROS_ANYWHERE:
        yield from _anywhere(isa, windows, weight, after)


def _by_blocks(isa: Isa, windows: tuple[Window, Window], weight: Floats, after: After) -> Iterator[Form]:
    shares = {
        vectors: float(sparse_blocks_f32.kept(weight, vectors).mean())
        for vectors in (1, 2)
        if groups_of(len(weight)) % vectors == 0
    }
    if 1 - shares[1] < LEAST_ZEROS:
        return
    vectors = 2 if shares.get(2, 2.0) <= shares[1] * 1.02 else 1
    whole, one = (sparse_blocks_f32.spec_of(window, weight, after, vectors, isa) for window in windows)
    if sparse_blocks_f32.supports(whole, isa).ok and sparse_blocks_f32.supports(one, isa).ok:
        rate = FEW_MACS_PER_NS if one.apart else BLOCK_MACS_PER_NS
        yield Form("sparse_blocks_f32", whole, one, one.macs() / rate)


def _anywhere(isa: Isa, windows: tuple[Window, Window], weight: Floats, after: After) -> Iterator[Form]:
    entries, window = int(np.count_nonzero(weight)), sparse_f32.flattened(windows[1])
    found = []
    for tile in tiles(window, weight.shape[1], isa):
        spec = SparseF32Spec(window, weight.shape[1], len(weight), entries, tile, after)
        if sparse_f32.supports(spec, isa).ok:
            found.append((cycles(spec), tile))
    if found:
        cost, tile = min(found, key=lambda pair: pair[0])
        whole, one = (sparse_f32.spec_of(window, weight, after, tile) for window in windows)
        yield Form("sparse_f32", whole, one, cost / CYCLES_PER_NS)


def tiles(window: Window, channels: int, isa: Isa) -> Iterator[Tile]:
    """Yield the tiles that are worth a prediction."""
    most = min(MOST_VECTORS, accumulators(isa))
    widths = [8] if window.out_width <= 8 * most else []
    widths += [w * LANES for w in range(1, most + 1) if (w - 1) * LANES < window.out_width]
    for across in widths:
        for lines in range(1, most * LANES // across + 1):
            if lines * across % LANES or lines >= window.out_height + 2:
                continue
            yield from _blocks(window, channels, Tile(lines, across, LANES))


def _blocks(window: Window, channels: int, tile: Tile) -> Iterator[Tile]:
    """Yield a tile with all channels at once, and with as many as fit the first-level cache."""
    per_group = SparseF32Spec(window, LANES, LANES, 1, tile).turned * 4
    groups = groups_of(channels)
    parts = -(-groups // max(1, L1_BYTES // per_group))
    for count in sorted({1, parts}):
        yield replace(tile, block=-(-groups // count) * LANES)


def cycles(spec: SparseF32Spec) -> float:
    """Return the predicted cycles of one sample."""
    vectors, blocks = spec.tile.vectors, spec.blocks
    rows = blocks * padded(spec.out_channels)
    load = 1.0 if spec.turned * 4 <= L1_BYTES else 1.25
    if spec.tile.across < LANES and spec.window.kernel[0] > 1:
        load *= 1.15  # vectors of odd lines lie in two lines of the cache
    products = spec.entries * (vectors * load + NONZERO_CYCLES)
    kept = rows * (ROW_CYCLES + (2.0 * vectors if blocks > 1 else 0.0))
    units = spec.plane / LANES * spec.window.kernel[1] * groups_of(spec.channels)
    far = spec.tile.lines * spec.tile.across * padded(spec.channels) * 4 > FAR_BYTES
    turn = FAR_TURN_CYCLES if far else TURN_CYCLES
    turns = (units + vectors * groups_of(spec.out_channels)) * turn
    return spec.tasks() * (products + kept + turns)


def _dense_nanoseconds(dense: Candidate) -> float:
    spec = dense.spec
    if isinstance(spec, WinogradF32Spec):
        return spec.products() / WINOGRAD_PRODUCTS_PER_NS
    macs = float(spec.macs())  # type: ignore[attr-defined]
    rows = getattr(spec, "rows", LANES)
    return macs / (DIRECT_MACS_PER_NS if rows > 4 else FEW_MACS_PER_NS)
