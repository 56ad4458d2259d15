"""Single kernels as callables that cost little more than the C call, and roofs measured likewise."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...backends.cpu.native.isa import Isa, host_isa
from ...backends.cpu.native.kernels import common, emit
from ...backends.cpu.native.link import link
from ...compiler.backend import Array
from ...compiler.errors import MissingTool

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Buffer, Stmt

Run = Callable[[], object]
LANES = 32
TILE = 14


def this_isa() -> Isa:
    """Return this machine's instruction set.

    Raises:
        MissingTool: kernels are not generated for it.
    """
    isa = host_isa()
    if isinstance(isa, Isa):
        return isa
    raise MissingTool("isa-unknown", isa.reason, "run the benchmark on x86-64 with AVX2 or on aarch64")


def bind(module: tvm.IRModule, isa: Isa, arrays: Sequence[Array], tasks: int) -> Run:
    """Compile a kernel and return a call of all its tasks on `arrays`, which it keeps and writes into."""
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as folder:
        code, library = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        code.write_bytes(common.compile_kernel(module, isa, "kernel"))
        link([code], library, isa)
        function = ctypes.CDLL(str(library)).kernel
    function.restype = None
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    call = functools.partial(function, *pointers, ctypes.c_int32(0), ctypes.c_int32(tasks))
    return functools.partial(_keeping, call, tuple(arrays))


def _keeping(call: Run, arrays: tuple[Array, ...]) -> object:
    """Call; holding `arrays` keeps the memory behind the pointers alive."""
    return call()


def aligned(array: Array) -> Array:
    """Return a copy that starts on a cache line."""
    copy = common.aligned_array(array.shape, array.dtype.name)
    copy[...] = array
    return copy


# --- roofs ------------------------------------------------------------------------------------------

PEAK_VECTORS, PEAK_TURNS = 64, 100


def popcount_peak(isa: Isa) -> tuple[Run, float]:
    """Return a loop of XOR, popcount and add on data in the first-level cache, and its binary MACs per call.

    It has the binary convolution's tile (28 accumulators of 512 bits) and none of its borders and stores.
    """
    data = emit.parameter("data", "uint32", (TILE,))
    weights = emit.parameter("weights", "uint32", (PEAK_VECTORS, LANES))
    out = emit.parameter("out", "int32", (TILE, LANES))
    sums = [emit.register(f"sum{i}", "int32", LANES) for i in range(TILE)]
    module = emit.module([data, weights, out], lambda begin, end: _peak(data, weights, out, sums, begin, end))
    rng = np.random.default_rng(0)
    arrays = [
        aligned(rng.integers(0, 2**32, TILE, dtype=np.uint32)),
        aligned(rng.integers(0, 2**32, (PEAK_VECTORS, LANES), dtype=np.uint32)),
        aligned(np.zeros((TILE, LANES), np.int32)),
    ]
    return bind(module, isa, arrays, PEAK_TURNS), float(PEAK_TURNS * PEAK_VECTORS * TILE * LANES * 32)


def _peak(
    data: Buffer,
    weights: Buffer,
    out: Buffer,
    sums: list[Buffer],
    begin: Expr,
    end: Expr,
) -> list[Stmt]:
    from tvm.tirx import popcount

    def vector(k: Expr) -> list[Stmt]:
        found = []
        for i, total in enumerate(sums):
            differs = emit.splat(emit.load(data, i), LANES) ^ emit.load(weights, k, 0, lanes=LANES)
            count = popcount(differs).astype(f"int32x{LANES}")
            found.append(emit.store(total, emit.load(total, 0, lanes=LANES) + count, 0, lanes=LANES))
        return found

    zero = emit.splat(emit.const(0), LANES)
    start = [emit.store(total, zero, 0, lanes=LANES) for total in sums]
    turns = emit.loop("turn", begin, end - begin, lambda turn: [emit.loop("k", 0, PEAK_VECTORS, vector)])
    done = [emit.store(out, emit.load(t, 0, lanes=LANES), i, 0, lanes=LANES) for i, t in enumerate(sums)]
    return [*emit.allocate(sums), *start, turns, *done]


def memory_read(byte_count: int, copies: int) -> Run:
    """Return a call that adds up the next of `copies` arrays of `byte_count` bytes."""
    arrays = [np.ones(byte_count // 8, np.int64) for _ in range(copies)]
    return rotate([array.sum for array in arrays])


def rotate(calls: Sequence[Run]) -> Run:
    """Return a call that makes the next of `calls` each time."""
    state = {"next": 0}

    def run() -> object:
        state["next"] = (state["next"] + 1) % len(calls)
        return calls[state["next"]]()

    return run
