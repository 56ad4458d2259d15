"""The C parts under sanitizers, and whole models whose buffers end where memory ends."""

import ctypes
import mmap
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from test_lower_read import canonical, samples

from pared.backends.cpu.native import codegen
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.link import find_compiler
from pared.backends.cpu.native.lower import lower
from pared.backends.cpu.native.planner import plan
from pared.backends.reference import evaluate

ISA = host_isa()
if not isinstance(ISA, Isa) or find_compiler(ISA.arch) is None:
    pytest.skip("needs a CPU with kernels and a C compiler", allow_module_level=True)

# Two runs at once on one pool, and a pool that comes and goes; every piece must be done exactly once.
POOL = """
#include "pool.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
enum { TASKS = 97, TURNS = 200 };
static void step(const pared_memory *m, int32_t begin, int32_t end) {
    for (int32_t i = begin; i < end; i++) m->arena[i]++;
}
static pared_pool *pool;
static void *runs(void *unused) {
    static _Thread_local unsigned char arena[TASKS];
    pared_memory memory = {0, 0, arena};
    for (int turn = 0; turn < TURNS; turn++) {
        memset(arena, 0, sizeof arena);
        if (pool_take(pool)) {
            pool_share(pool, step, &memory, TASKS);
            pool_leave(pool);
        } else {
            step(&memory, 0, TASKS);
        }
        for (int i = 0; i < TASKS; i++) if (arena[i] != 1) return "a piece was not done once";
    }
    return unused;
}
int main(void) {
    for (int turn = 0; turn < 3; turn++) {
        pool = pared_pool_create(3);
        pthread_t other;
        void *wrong = 0;
        if (!pool || pthread_create(&other, 0, runs, 0)) return 2;
        void *own = runs(0);
        pthread_join(other, &wrong);
        pared_pool_destroy(pool);
        if (own || wrong) return puts(own ? own : wrong), 1;
    }
    return 0;
}
"""


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_two_runs_on_one_pool_are_clean_under(sanitizer, tmp_path):
    for name in ("pool.c", "pool.h"):
        (tmp_path / name).write_bytes((files(codegen.__package__) / "c" / name).read_bytes())
    (tmp_path / "model.h").write_bytes((files(codegen.__package__) / "c" / "interface.h").read_bytes())
    (tmp_path / "main.c").write_text(POOL)
    command = [*find_compiler(ISA.arch), "-std=c11", "-O1", "-g", f"-fsanitize={sanitizer}"]
    command += ["-fno-sanitize-recover=all", "main.c", "pool.c", "-o", "main", "-lpthread"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizer {sanitizer}")
    ran = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("this kernel's address space does not suit the sanitizer")
    assert (ran.returncode, ran.stderr) == (0, "")


def before_the_end(array, misaligned=0):
    """Return a copy of `array` whose last byte is the last one before a page that must not be touched."""
    page = mmap.PAGESIZE
    whole = -(-(array.nbytes + misaligned) // page) * page
    memory = mmap.mmap(-1, whole + page)
    start = ctypes.addressof((ctypes.c_char * (whole + page)).from_buffer(memory))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(start + whole, page, 0) == 0
    where = start + whole - array.nbytes - misaligned
    ctypes.memmove(where, array.ctypes.data, array.nbytes)
    return memory, where


def run_at(library, places, arena):
    ports = [(ctypes.c_void_p * 1)(where) for where in places]
    assert ctypes.CDLL(str(library)).pared_run(*ports, ctypes.c_void_p(arena)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect through the C library")
@pytest.mark.parametrize("misaligned", [0, 3])
@pytest.mark.parametrize("precision", [None, "int8"])
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_resnet"])
def test_nothing_behind_inputs_outputs_and_arena_is_touched(name, precision, misaligned, tmp_path):
    model = canonical(name, precision, samples(name, 8) if precision else None)
    program = lower(model, ISA)
    built = codegen.build(program, plan(program), ISA)
    (tmp_path / "model.so").write_bytes(built["model.so"])
    inputs = samples(name, 1)
    (x,), (want,) = inputs.values(), evaluate(model, inputs).values()
    size = ctypes.CDLL(str(tmp_path / "model.so")).pared_arena_bytes()
    kept = [
        before_the_end(np.ascontiguousarray(x), misaligned),
        before_the_end(np.zeros_like(want), misaligned),
    ]
    kept.append(before_the_end(np.zeros(-(-size // 64) * 64, np.uint8)))
    run_at(tmp_path / "model.so", [where for _, where in kept[:2]], kept[2][1])
    got = np.frombuffer(ctypes.string_at(kept[1][1], want.nbytes), want.dtype).reshape(want.shape)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
