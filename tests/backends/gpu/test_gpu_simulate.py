"""Simulated kernels: threads, warps, shared memory and number types against NumPy, and what is refused."""

from __future__ import annotations

import shutil

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pared.backends.gpu.simulate import SimulationError, simulate
from pared.backends.gpu.simulate.compiled import fused_options

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")

Array = npt.NDArray[np.generic]
POISON = 0x5A5A5A5A  # what nobody wrote, in ascending order


def run(body: str, *buffers: Array, block: int = 32, grid: int = 1, shared: int = 0, **options: bool) -> None:
    """Run a kernel `k` whose parameters are named a, b, c, ... and typed as the buffers are."""
    types = {
        "float16": "half", "bfloat16": "nv_bfloat16", "float32": "float", "float64": "double",
        "int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short",
        "int32": "int", "uint32": "unsigned", "int64": "long long", "uint64": "unsigned long long",
    }  # fmt: skip
    parameters = ", ".join(f"{types[str(b.dtype)]} *{n}" for n, b in zip("abcdef", buffers, strict=False))
    head = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
    source = f'{head}extern "C" __global__ void __launch_bounds__(1024) k({parameters}) {{ {body} }}'
    simulate(source, "k", (grid, 1, 1), (block, 1, 1), shared, list(buffers), **options)


# --- warps -----------------------------------------------------------------------------------------


def test_a_sum_over_a_warp_is_what_lane_zero_gets() -> None:
    a = np.arange(96, dtype=np.float32)
    total = np.zeros(3, np.float32)
    run(
        """float v = a[threadIdx.x];
           for (int d = 16; d; d /= 2) v += __shfl_down_sync(0xffffffff, v, d, 32);
           if (threadIdx.x % 32 == 0) b[threadIdx.x / 32] = v;""",
        a, total, block=96,
    )  # fmt: skip
    assert total.tolist() == a.reshape(3, 32).sum(1).tolist()


@pytest.mark.parametrize("width", [4, 8, 32])
@pytest.mark.parametrize("kind", ["up", "down", "xor", "index"])
def test_shuffles_stay_in_their_group_of_lanes(kind: str, width: int) -> None:
    lane = np.arange(32)
    first = lane // width * width
    source = {
        "up": np.where(lane - 5 >= first, lane - 5, lane),
        "down": np.where(lane + 5 < first + width, lane + 5, lane),
        "xor": np.where((lane ^ 5) < first + width, lane ^ 5, lane),
        "index": first + 5 % width,
    }[kind]
    name = "__shfl_sync" if kind == "index" else f"__shfl_{kind}_sync"
    out = np.zeros(32, np.int32)
    run(f"a[threadIdx.x] = {name}(0xffffffffu, (int)threadIdx.x * 7, 5, {width});", out)
    assert out.tolist() == (source * 7).tolist()


def test_votes_count_the_lanes_that_take_part() -> None:
    out = np.zeros((3, 20), np.uint32)
    run(
        """int i = threadIdx.x;
           a[i] = __ballot_sync(0xffffffff, i % 3 == 0);
           a[20 + i] = __any_sync(0xffffffff, i == 19);
           a[40 + i] = __reduce_max_sync(0xffffffff, (unsigned)(i * 5));""",
        out, block=20,
    )  # fmt: skip
    assert set(out[0]) == {sum(1 << i for i in range(0, 20, 3))}
    assert set(out[1]) == {1}
    assert set(out[2]) == {95}


def test_active_lanes_are_those_at_the_same_place() -> None:
    out = np.zeros(32, np.uint32)
    run("if (threadIdx.x < 5) a[threadIdx.x] = __activemask(); else a[threadIdx.x] = 7;", out)
    assert out.tolist() == [31] * 5 + [7] * 27


# --- blocks ----------------------------------------------------------------------------------------

REVERSE = """__shared__ alignas(16) int s[256];
             s[threadIdx.x] = a[blockIdx.x * 256 + threadIdx.x];
             BARRIER
             b[blockIdx.x * 256 + threadIdx.x] = s[255 - threadIdx.x];"""


def test_a_block_exchanges_through_shared_memory() -> None:
    a, b = np.arange(768, dtype=np.int32), np.zeros(768, np.int32)
    run(REVERSE.replace("BARRIER", "__syncthreads();"), a, b, block=256, grid=3)
    assert np.array_equal(b.reshape(3, 256), a.reshape(3, 256)[:, ::-1])


@pytest.mark.parametrize("lanes", [32, 256])
def test_a_missing_barrier_is_found(lanes: int) -> None:
    """Within a warp too: lanes do not advance together."""
    a, b = np.arange(768, dtype=np.int32), np.zeros(768, np.int32)
    text = REVERSE.replace("BARRIER", "").replace("255", str(lanes - 1))
    with pytest.raises(SimulationError, match="barrier is missing"):
        run(text, a, b, block=lanes)


@pytest.mark.parametrize("lanes", [32, 64])
def test_overwriting_what_others_still_read_is_found(lanes: int) -> None:
    body = """__shared__ int s[64];
              int sum = 0;
              for (int i = 0; i < 4; ++i) {
                s[threadIdx.x] = a[i * 64 + threadIdx.x];
                __syncthreads();
                sum += s[LAST - threadIdx.x];
                BARRIER
              }
              b[threadIdx.x] = sum;""".replace("LAST", str(lanes - 1))
    a, b = np.arange(256, dtype=np.int32), np.zeros(lanes, np.int32)
    run(body.replace("BARRIER", "__syncthreads();"), a, b, block=lanes)
    assert np.array_equal(b, a.reshape(4, 64)[:, :lanes].sum(0)[::-1])
    with pytest.raises(SimulationError, match="barrier is missing"):
        run(body.replace("BARRIER", ""), a, b, block=lanes)


def test_a_block_does_not_see_the_shared_memory_of_the_one_before() -> None:
    body = "__shared__ int s[32]; if (blockIdx.x != 1) s[threadIdx.x] = 1; a[blockIdx.x] = s[threadIdx.x];"
    with pytest.raises(SimulationError, match="nothing wrote"):
        run(body, np.zeros(3, np.int32), grid=3)


def test_reading_what_nothing_wrote_is_found() -> None:
    out = np.zeros(32, np.int32)
    with pytest.raises(SimulationError, match="nothing wrote"):
        run(
            "__shared__ int s[33]; s[threadIdx.x] = 1; __syncthreads(); a[threadIdx.x] = s[threadIdx.x + 1];",
            out,
        )
    run(
        "__shared__ int s[33]; s[threadIdx.x] = 1; __syncthreads(); a[threadIdx.x] = s[32];",
        out,
        orders=False,
    )
    assert set(out) == {POISON}


def test_dynamic_shared_memory_has_the_size_of_the_launch() -> None:
    body = """extern __shared__ float s[];
              s[threadIdx.x] = 2;
              __syncthreads();
              a[threadIdx.x] = s[threadIdx.x ^ 1];"""
    out = np.zeros(64, np.float32)
    run(body, out, block=64, shared=256)
    assert set(out) == {2.0}
    with pytest.raises(SimulationError, match="byte 128 of dynamic shared memory of 128"):
        run(body, out, block=64, shared=128)


def test_a_barrier_that_some_threads_do_not_reach_is_an_error() -> None:
    out = np.zeros(64, np.int32)
    with pytest.raises(SimulationError, match=r"waits at a barrier.*and thread .* at a barrier"):
        run(
            "if (threadIdx.x < 32) __syncthreads();\nelse\n__syncthreads(); a[threadIdx.x] = 1;",
            out,
            block=64,
        )
    with pytest.raises(SimulationError, match="others that do not come"):
        run('if (threadIdx.x) { asm volatile("bar.sync 1, 64;"); } a[threadIdx.x] = 1;', out, block=64)


def test_a_named_barrier_joins_some_warps() -> None:
    out = np.zeros(96, np.int32)
    run(
        """__shared__ int s[64];
           if (threadIdx.x < 64) {
             s[threadIdx.x] = threadIdx.x;
             asm volatile("bar.sync %0, 64;" : : "r"(3));
             a[threadIdx.x] = s[63 - threadIdx.x];
           }""",
        out, block=96,
    )  # fmt: skip
    assert out.tolist() == [*range(63, -1, -1), *[0] * 32]


def test_atomics_add_up_over_blocks() -> None:
    out = np.zeros(4, np.int32)
    run("atomicAdd(a + threadIdx.x % 4, 3);", out, block=32, grid=5)
    assert out.tolist() == [120] * 4


# --- what no device permits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("a[threadIdx.x] = b[threadIdx.x + 16];", r"thread \(16, 0, 0\).*byte 128 of a buffer of 128 bytes"),
        ("a[(int)threadIdx.x - 2000] = 1;", "byte -8000 of a buffer"),
        ("a[(int)threadIdx.x - 4] = 1;", "written past a buffer: byte -16"),
        (
            "__shared__ float s[8]; *(s + threadIdx.x) = 1; a[0] = s[0];",
            "byte 32 of shared array s of 32 bytes",
        ),
        ("__shared__ float s[8]; s[threadIdx.x] = 1; a[0] = s[0];", r"thread \(8, 0, 0\).*beyond an array"),
        ("float v[4]; v[threadIdx.x] = 1; a[0] = v[threadIdx.x / 2];", "beyond an array"),
        ("*(float4 *)(a + threadIdx.x) = make_float4(0, 0, 0, 0);", "not a multiple of the access's size"),
        ("a[0] = 5 / ((int)b[0] + (int)threadIdx.x);", "divides by zero"),
    ],
)
def test_an_access_that_no_device_permits_is_an_error(body: str, said: str) -> None:
    with pytest.raises(SimulationError, match=said) as caught:
        run(body, np.zeros(32, np.float32), np.zeros(32, np.float32))
    assert caught.value.reason == "simulation-failed"


def test_launches_that_no_device_permits_are_errors() -> None:
    out = np.zeros(32, np.float32)
    with pytest.raises(SimulationError, match="compiled for 1024 threads"):
        run("a[0] = 1;", out, block=1056)
    with pytest.raises(SimulationError, match="at most 49152"):
        run("__shared__ float s[12289]; s[threadIdx.x] = 1; a[0] = s[0];", out, orders=False)
    with pytest.raises(SimulationError, match="no kernel other"):
        simulate('extern "C" __global__ void k() {}', "other", (1, 1, 1), (1, 1, 1), 0, [])


def test_an_instruction_that_is_not_simulated_is_named() -> None:
    with pytest.raises(SimulationError, match=r"line 3: `wgmma.fence.sync.aligned`"):
        run('asm volatile("wgmma.fence.sync.aligned;");', np.zeros(1, np.float32))


# --- numbers ---------------------------------------------------------------------------------------


def _specials(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Values of every magnitude, ties between neighbours among them."""
    random = rng.integers(0, 1 << 32, 4096, dtype=np.uint32).view(np.float32)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2
    close = np.float32([0.0, -0.0, np.inf, -np.inf, 65504, 65519.996, 65520, 2.0**-25, 2.0**-24, 1e-40])
    all_of = np.concatenate([random[~np.isnan(random)], halves, ties, -ties, np.nextafter(ties, 0), close])
    return np.resize(all_of, (all_of.size + 255) // 256 * 256)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_halves_are_rounded_to_nearest_even(kind: str) -> None:
    dtype = np.dtype(np.float16) if kind == "float16" else np.dtype(ml_dtypes.bfloat16)
    x = _specials(np.random.default_rng(0))
    got, back = np.zeros(x.size, dtype), np.zeros(x.size, np.float32)
    made = "half(a[i])" if kind == "float16" else "nv_bfloat16(a[i])"
    body = f"int i = blockIdx.x * 256 + threadIdx.x; b[i] = {made}; c[i] = (float)b[i];"
    run(body, x, got, back, block=256, grid=x.size // 256)
    with np.errstate(over="ignore"):
        want = x.astype(dtype)
    assert np.array_equal(got.view(np.uint16), want.view(np.uint16))
    assert np.array_equal(back, want.astype(np.float32))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_arithmetic_of_halves_rounds_once(kind: str) -> None:
    dtype = np.dtype(np.float16) if kind == "float16" else np.dtype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(1)
    x, y, z = (rng.normal(size=2048).astype(np.float32).astype(dtype) for _ in range(3))
    y[:4] = dtype.type(1) + dtype.type(2.0**-7)
    out = np.zeros((5, 2048), dtype)
    run(
        """int i = blockIdx.x * 256 + threadIdx.x;
           d[i] = a[i] + b[i]; d[2048 + i] = a[i] - b[i]; d[4096 + i] = a[i] * b[i];
           d[6144 + i] = a[i] / b[i]; d[8192 + i] = __hfma(a[i], b[i], c[i]);""",
        x, y, z, out, block=256, grid=8,
    )  # fmt: skip
    a, b, c = (v.astype(np.float64) for v in (x, y, z))
    want = [a + b, a - b, a * b, a / b, a * b + c]
    for got, exact in zip(out, want, strict=True):
        assert np.array_equal(got.view(np.uint16), exact.astype(dtype).view(np.uint16))


def test_packed_integers_are_multiplied_and_summed() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-128, 128, (32, 4)).astype(np.int8) for _ in range(2))
    out = np.zeros((3, 32), np.int32)
    run(
        """int i = threadIdx.x;
           c[i] = __dp4a(((int *)a)[i], ((int *)b)[i], 5);
           c[32 + i] = __popc(((unsigned *)a)[i]);
           c[64 + i] = __byte_perm(((unsigned *)a)[i], ((unsigned *)b)[i], 0x7531);""",
        a, b, out,
    )  # fmt: skip
    assert np.array_equal(out[0], (a.astype(np.int32) * b).sum(1) + 5)
    assert np.array_equal(out[1], np.bitwise_count(a.view(np.uint32)[:, 0]))
    picked = np.stack([a[:, 1], a[:, 3], b[:, 1], b[:, 3]], 1)
    assert np.array_equal(out[2], np.ascontiguousarray(picked).view(np.int32)[:, 0])


@pytest.mark.skipif(not fused_options(), reason="this CPU has no fused multiply-add")
def test_products_and_sums_are_fused_where_it_is_permitted_and_nowhere_else() -> None:
    x = np.full(32, 1 + 2.0**-12, np.float32)
    fused, apart = np.zeros(32, np.float32), np.zeros(32, np.float32)
    run("b[threadIdx.x] = a[threadIdx.x] * a[threadIdx.x] - 1.0f;", x, fused, contract=True)
    run("b[threadIdx.x] = a[threadIdx.x] * a[threadIdx.x] - 1.0f;", x, apart, contract=False)
    assert set(fused) == {np.float32(2.0**-11 + 2.0**-24)}
    assert set(apart) == {np.float32(2.0**-11)}
