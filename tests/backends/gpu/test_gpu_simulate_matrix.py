"""Simulated tensor cores: fragments, matrix loads and asynchronous copies against NumPy."""

from __future__ import annotations

import itertools
import shutil

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pared.backends.gpu.simulate import SimulationError, simulate

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")

Array = npt.NDArray[np.generic]
_HEAD = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <mma.h>\nusing namespace nvcuda;\n"
_DTYPES = {"half": np.dtype(np.float16), "nv_bfloat16": np.dtype(ml_dtypes.bfloat16)}


def launch(parameters: str, body: str, *buffers: Array, block: int = 32) -> None:
    """Run a kernel `k` of one block."""
    source = f'{_HEAD}extern "C" __global__ void k({parameters}) {{ {body} }}'
    simulate(source, "k", (1, 1, 1), (block, 1, 1), 0, list(buffers))


# --- nvcuda::wmma ----------------------------------------------------------------------------------

_WMMA = """
  wmma::fragment<wmma::matrix_a, M, N, K, KIND, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, M, N, K, KIND, wmma::COLUMNS> fb;
  wmma::fragment<wmma::accumulator, M, N, K, SUM> fc, fd;
  wmma::fill_fragment(fc, (SUM)0);
  for (int k = 0; k < 2; ++k) {
    wmma::load_matrix_sync(fa, a + k * K, 2 * K);
    wmma::load_matrix_sync(fb, b + k * STEP, LDB);
    wmma::mma_sync(fc, fa, fb, fc);
  }
  for (int i = 0; i < fc.num_elements; ++i) fd.x[i] = fc.x[i] + fc.x[i];
  wmma::store_matrix_sync(c, fd, N, wmma::mem_row_major);"""


def _wmma(m: int, n: int, k: int, kind: str, total: str, columns: bool) -> str:
    changes = {"KIND": kind, "SUM": total, "COLUMNS": "col_major" if columns else "row_major",
               "STEP": "K" if columns else "K * N", "LDB": "2 * K" if columns else "N"}  # fmt: skip
    text = _WMMA
    for name, value in changes.items():
        text = text.replace(name, value)
    return f"const int M = {m}, N = {n}, K = {k};{text}"


@pytest.mark.parametrize(
    ("kind", "m", "n", "columns"),
    [
        ("half", 16, 16, True), ("half", 32, 8, False), ("half", 8, 32, True), ("nv_bfloat16", 16, 16, False),
        ("signed char", 16, 16, True), ("signed char", 8, 32, False), ("unsigned char", 16, 16, False),
    ],
)  # fmt: skip
def test_fragments_multiply(kind: str, m: int, n: int, columns: bool) -> None:
    rng = np.random.default_rng(m + n)
    dtype = _DTYPES.get(kind) or np.dtype(np.int8 if kind == "signed char" else np.uint8)
    low, high = (0, 256) if kind == "unsigned char" else (-128, 128)
    a, b = (rng.integers(low, high, s).astype(np.float32).astype(dtype) for s in ((m, 32), (32, n)))
    total = "float" if kind in _DTYPES else "int"
    out = np.zeros((m, n), np.float32 if total == "float" else np.int32)
    given = np.ascontiguousarray(b.T) if columns else b
    launch(f"{total} *c, {kind} *a, {kind} *b", _wmma(m, n, 16, kind, total, columns), out, a, given)
    assert np.array_equal(out, 2 * (a.astype(np.float64) @ b.astype(np.float64)))


def test_fragments_of_halves_can_sum_in_halves() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 32)).astype(np.float16), rng.integers(-4, 5, (32, 16)).astype(np.float16)
    out = np.zeros((16, 16), np.float16)
    launch("half *c, half *a, half *b", _wmma(16, 16, 16, "half", "half", False), out, a, b)
    assert np.array_equal(out, 2 * (a.astype(np.float32) @ b.astype(np.float32)))


def test_tf32_drops_the_low_bits() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(16, 16)).astype(np.float32), rng.normal(size=(16, 16)).astype(np.float32)
    out = np.zeros((16, 16), np.float32)
    body = _wmma(16, 16, 8, "wmma::precision::tf32", "float", False)
    launch("float *c, float *a, float *b", body, out, a, b)
    cut = [(v.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64) for v in (a, b)]
    assert np.abs(out - 2 * (cut[0] @ cut[1])).max() <= 4 * 2.0**-24 * np.abs(out).max()
    assert np.abs(out - 2 * (a.astype(np.float64) @ b)).max() > 1e-4


def test_single_bits_are_counted() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 1 << 32, (8, 4), dtype=np.uint32) for _ in range(2))
    out = np.zeros((8, 8), np.int32)
    launch(
        "int *c, unsigned *a, unsigned *b",
        """wmma::fragment<wmma::matrix_a, 8, 8, 128, wmma::experimental::precision::b1, wmma::row_major> fa;
           wmma::fragment<wmma::matrix_b, 8, 8, 128, wmma::experimental::precision::b1, wmma::col_major> fb;
           wmma::fragment<wmma::accumulator, 8, 8, 128, int> fc;
           wmma::fill_fragment(fc, 3);
           wmma::load_matrix_sync(fa, a, 128);
           wmma::load_matrix_sync(fb, b, 128);
           wmma::bmma_sync(fc, fa, fb, fc);
           wmma::store_matrix_sync(c, fc, 8, wmma::mem_row_major);""",
        out, a, b,
    )  # fmt: skip
    assert np.array_equal(out, np.bitwise_count(a[:, None] ^ b[None]).sum(-1) + 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("a + k * K", "a + k * K + 8"), "not a multiple"),
        (("a + k * K", "a + k * K + threadIdx.x / 31 * 32"), "different pointers"),
        (("wmma::mma_sync", "if (threadIdx.x < 31) wmma::mma_sync"), "is stuck"),
    ],
)
def test_what_a_fragment_cannot_do_is_an_error(change: tuple[str, str], said: str) -> None:
    body = _wmma(16, 16, 16, "half", "float", False).replace(*change)
    with pytest.raises(SimulationError, match=said):
        launch("float *c, half *a, half *b", body, np.zeros((16, 16), np.float32),
               np.zeros((18, 32), np.float16), np.zeros((32, 16), np.float16))  # fmt: skip


# --- mma.sync: rows and columns of registers written down from the PTX ISA's tables ----------------


def _fragment_a(matrix: Array, bits: int) -> npt.NDArray[np.uint32]:
    """[16 or 8, k] as registers [32 lanes, count]."""
    codes, per = matrix.astype(np.int64) & ((1 << bits) - 1), 32 // bits
    rows, k = matrix.shape
    count = rows * k // per // 32
    out = np.zeros((32, count), np.uint32)
    for lane in range(32):
        for i in range(count * per):
            register = i // per
            row = lane // 4 + (8 if register % 2 and rows == 16 else 0)
            block = register // 2 if rows == 16 else register
            column = lane % 4 * per + i % per + block * 4 * per
            out[lane, register] |= np.uint32(int(codes[row, column]) << (i % per * bits))
    return out


def _fragment_b(matrix: Array, bits: int) -> npt.NDArray[np.uint32]:
    """[k, 8] as registers [32 lanes, count]."""
    codes, per = matrix.astype(np.int64) & ((1 << bits) - 1), 32 // bits
    count = matrix.shape[0] // (4 * per)
    out = np.zeros((32, count), np.uint32)
    for lane in range(32):
        for i in range(count * per):
            row = lane % 4 * per + i % per + i // per * 4 * per
            out[lane, i // per] |= np.uint32(int(codes[row, lane // 4]) << (i % per * bits))
    return out


def _product(shape: str, kinds: str, a: Array, b: Array, sums: str) -> str:
    names = itertools.count()
    count = 4 if "m16" in shape else 2
    groups = [[next(names) for _ in range(n)] for n in (count, a.shape[1], b.shape[1], count)]
    text = ", ".join("{" + ", ".join(f"%{i}" for i in group) + "}" for group in groups)
    letter = "f" if sums == "float" else "r"
    outputs = ", ".join(f'"={letter}"(d[{i}])' for i in range(count))
    inputs = [f'"r"(a[threadIdx.x * {a.shape[1]} + {i}])' for i in range(a.shape[1])]
    inputs += [f'"r"(b[threadIdx.x * {b.shape[1]} + {i}])' for i in range(b.shape[1])]
    inputs += [f'"{letter}"(d[{i}])' for i in range(count)]
    return f"""{sums} d[{count}];
      for (int i = 0; i < {count}; ++i) d[i] = 1;
      asm volatile("mma.sync.aligned.{shape}.row.col.{kinds} {text};" : {outputs} : {", ".join(inputs)});
      for (int i = 0; i < {count}; ++i)
        c[(threadIdx.x / 4 + i / 2 * 8) * 8 + threadIdx.x % 4 * 2 + i % 2] = d[i];"""


@pytest.mark.parametrize(
    ("rows", "k", "bits", "kinds"),
    [
        (16, 16, 8, "s32.s8.s8.s32"), (16, 32, 8, "s32.s8.s8.s32"), (16, 32, 8, "s32.u8.u8.s32"),
        (8, 16, 8, "s32.s8.s8.s32"), (16, 64, 4, "s32.s4.s4.s32"), (16, 32, 4, "s32.u4.u4.s32"),
    ],
)  # fmt: skip
def test_integer_products_of_a_warp(rows: int, k: int, bits: int, kinds: str) -> None:
    rng = np.random.default_rng(k)
    low = 0 if ".u" in kinds else -(1 << (bits - 1))
    a, b = (rng.integers(low, low + (1 << bits), s) for s in ((rows, k), (k, 8)))
    fa, fb = _fragment_a(a, bits), _fragment_b(b, bits)
    out = np.zeros((rows, 8), np.int32)
    body = _product(f"m{rows}n8k{k}", kinds, fa, fb, "int")
    launch("int *c, unsigned *a, unsigned *b", body, out, fa, fb)
    assert np.array_equal(out, a @ b + 1)


@pytest.mark.parametrize("k", [128, 256])
@pytest.mark.parametrize("operation", ["xor", "and"])
def test_products_of_bits_of_a_warp(operation: str, k: int) -> None:
    rng = np.random.default_rng(k)
    a, b = rng.integers(0, 2, (16, k)), rng.integers(0, 2, (k, 8))
    fa, fb = _fragment_a(a, 1), _fragment_b(b, 1)
    out = np.zeros((16, 8), np.int32)
    launch(
        "int *c, unsigned *a, unsigned *b",
        _product(f"m16n8k{k}", f"s32.b1.b1.s32.{operation}.popc", fa, fb, "int"), out, fa, fb,
    )  # fmt: skip
    want = a @ b if operation == "and" else (a[:, :, None] != b[None]).sum(1)
    assert np.array_equal(out, want + 1)


@pytest.mark.parametrize(("k", "kind"), [(8, "f16"), (16, "f16"), (16, "bf16"), (8, "tf32")])
def test_float_products_of_a_warp(k: int, kind: str) -> None:
    rng = np.random.default_rng(k)
    a, b = rng.integers(-64, 65, (16, k)).astype(np.float32), rng.integers(-64, 65, (k, 8)).astype(np.float32)
    dtype = {"f16": _DTYPES["half"], "bf16": _DTYPES["nv_bfloat16"], "tf32": np.dtype(np.float32)}[kind]
    raw = np.uint32 if kind == "tf32" else np.uint16
    bits = 8 * np.dtype(raw).itemsize
    fa, fb = _fragment_a(a.astype(dtype).view(raw), bits), _fragment_b(b.astype(dtype).view(raw), bits)
    out = np.zeros((16, 8), np.float32)
    body = _product(f"m16n8k{k}", f"f32.{kind}.{kind}.f32", fa, fb, "float")
    launch("float *c, unsigned *a, unsigned *b", body, out, fa, fb)
    assert np.array_equal(out, a @ b + 1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded_by_rows_that_lanes_point_at(count: int, transposed: bool) -> None:
    data = np.arange(count * 64, dtype=np.uint16)
    out = np.zeros((32, count, 2), np.uint16)
    registers = "{" + ", ".join(f"%{i}" for i in range(count)) + "}"
    opcode = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' * transposed}.shared.b16"
    outputs = ", ".join(f'"=r"(((unsigned *)b)[threadIdx.x * {count} + {i}])' for i in range(count))
    launch(
        "unsigned short *a, unsigned short *b",
        f"""__shared__ __align__(16) unsigned short s[{count * 64}];
            for (int i = threadIdx.x; i < {count * 64}; i += 32) s[i] = a[i];
            __syncthreads();
            unsigned address = __cvta_generic_to_shared(s + threadIdx.x % {count * 8} * 8);
            asm volatile("{opcode} {registers}, [%{count}];" : {outputs} : "r"(address));""",
        data, out,
    )  # fmt: skip
    tiles = data.reshape(count, 8, 8)
    tiles = tiles.transpose(0, 2, 1) if transposed else tiles
    assert np.array_equal(out, tiles.reshape(count, 32, 2).transpose(1, 0, 2))


# --- asynchronous copies ---------------------------------------------------------------------------

_COPY = """__shared__ __align__(16) float s[2][128];
  for (int i = 0; i < 2; ++i) {
    unsigned to = __cvta_generic_to_shared(s[i] + threadIdx.x * 4);
    float *from = a + i * 128 + threadIdx.x * 4;
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2;" :: "r"(to), "l"(from), "n"(16));
    asm volatile("cp.async.commit_group;");
  }
  asm volatile("cp.async.wait_group 1;");
  __syncthreads();
  b[threadIdx.x] = s[0][127 - threadIdx.x];
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  b[32 + threadIdx.x] = s[1][127 - threadIdx.x];"""


def test_copies_are_there_when_they_have_been_waited_for() -> None:
    a, b = np.arange(256, dtype=np.float32), np.zeros((2, 32), np.float32)
    launch("float *a, float *b", _COPY, a, b)
    assert np.array_equal(b, a.reshape(2, 128)[:, :95:-1])


@pytest.mark.parametrize("change", [("wait_group 0", "wait_group 1"), ("wait_group 1", "wait_group 2")])
def test_reading_copies_too_early_is_found(change: tuple[str, str]) -> None:
    a, b = np.arange(256, dtype=np.float32), np.zeros((2, 32), np.float32)
    with pytest.raises(SimulationError, match="opposite order"):
        launch("float *a, float *b", _COPY.replace(*change), a, b)


def test_a_copy_with_a_predicate_fills_with_zeros() -> None:
    a, b = np.arange(1, 129, dtype=np.float32), np.zeros(128, np.float32)
    launch(
        "float *a, float *b",
        """__shared__ __align__(16) float s[128];
           unsigned to = __cvta_generic_to_shared(s + threadIdx.x * 4);
           asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0;\\n"
                        " @p cp.async.ca.shared.global [%0], [%1], 16;\\n"
                        " @!p st.shared.v4.u32 [%0], {%3, %3, %3, %3}; }"
                        :: "r"(to), "l"(a + threadIdx.x * 4), "r"((int)(threadIdx.x < 30)), "r"(0));
           asm volatile("cp.async.wait_all;");
           __syncthreads();
           for (int i = 0; i < 4; ++i) b[threadIdx.x * 4 + i] = s[threadIdx.x * 4 + i];""",
        a, b,
    )  # fmt: skip
    assert np.array_equal(b, np.where(np.arange(128) < 120, a, 0))
