import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")

from pared.backends.cpu.native.isa import Isa, host_isa  # noqa: E402
from pared.backends.cpu.native.kernels import common, emit  # noqa: E402
from pared.backends.cpu.native.link import find_compiler  # noqa: E402

ISA = host_isa()
if not isinstance(ISA, Isa) or find_compiler(ISA.arch) is None:
    pytest.skip("needs a CPU with kernels and a C compiler", allow_module_level=True)


def scheduled(rows):
    """rows x 16: out = 2 x, the outermost loop over rows."""
    from tvm import te

    x = te.placeholder((rows, 16), "float32", name="x")
    out = te.compute((rows, 16), lambda i, j: x[i, j] * 2.0, name="out")
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, out])}))
    schedule.vectorize(schedule.get_loops(schedule.get_sblock("out"))[1])
    return schedule.mod


def by_hand(rows):
    x, out = (emit.parameter(name, "float32", (rows, 16)) for name in ("x", "out"))

    def row(i):
        return [emit.store(out, emit.load(x, i, 0, lanes=16) + emit.load(x, i, 0, lanes=16), i, 0, lanes=16)]

    return emit.module([x, out], lambda begin, end: [emit.loop("i", begin, end - begin, row)])


@pytest.mark.parametrize("build", [scheduled, by_hand])
def test_a_kernel_does_exactly_the_pieces_it_is_asked_for(build):
    kernel = common.load_kernel(build(8), ISA)
    x, out = common.aligned_array((8, 16), "float32"), common.aligned_array((8, 16), "float32")
    x[:] = np.arange(128).reshape(8, 16)
    kernel(x, out, 2, 5)
    want = np.zeros_like(x)
    want[2:5] = 2 * x[2:5]
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("end", [0, 1])
def test_an_outer_loop_of_one_still_obeys_its_range(end):
    kernel = common.load_kernel(scheduled(1), ISA)
    x, out = np.ones((1, 16), np.float32), np.zeros((1, 16), np.float32)
    kernel(x, out, 0, end)
    assert out.max() == 2 * end


def test_tasks_are_the_extent_of_the_outermost_loop():
    assert common.tasks_of(scheduled(8)) == 8


def test_equal_kernels_give_equal_bytes():
    assert common.compile_kernel(scheduled(8), ISA, "k") == common.compile_kernel(scheduled(8), ISA, "k")


def test_the_symbol_is_the_one_asked_for():
    assert b"some_name" in common.compile_kernel(scheduled(8), ISA, "some_name")
