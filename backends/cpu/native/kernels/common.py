"""From a PrimFunc to machine code that plain C calls. What all kernel families share.

The convention
--------------
A family's `build(spec, isa)` returns an IRModule with one PrimFunc `main`. Its parameters are static-shape
buffers: inputs, constants, outputs, scratch. `compile_kernel` makes of it a C function without any run-time
library behind it, one pointer per buffer,

    void <symbol>(const void *input, ..., void *output, ..., int32_t begin, int32_t end);

which does the pieces `begin <= i < end` of its outermost loop; all of it is `0, tasks`.

* A function that ends in two int32 parameters (written by hand, see `emit.py`) uses them itself. Its spec's
  `tasks()` is the bound.
* Otherwise (a schedule of a tensor expression) the outermost loop is cut to `begin..end` after lowering, and
  `tasks()` is its extent. A body of several loops one after the other is one piece: `tasks()` is 1.

There is nothing around the pieces: no argument checks, no packed arguments, no errors, no allocator. A call
costs what a C call costs (1.4 ns through a pointer, empty range, on Zen 4). Every temporary buffer lies on
the stack, whatever its scope, so keep them to some tens of KiB; larger ones are the step's scratch buffers.

Pointers are 64-byte aligned except the caller's own inputs and outputs, so use unaligned vector loads (LLVM's
default here). Buffers do not overlap: parameters are `noalias`. A kernel of which some step may run in place
(`Step.in_place`) is compiled without that promise.

Traps: TVM writes `a * b + c` on floats as `fmuladd`, which becomes one rounding; where two are meant
(requantization), put something between, or add in int32 after rounding. `round` is half away from zero; half
to even is the intrinsic `llvm.rint` or `nearbyint`.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm import ir, s_tir, tirx

from .....compiler.backend import Array
from .....compiler.temporary import folder_prefix
from ..isa import Isa
from ..link import link

Kernel = Callable[..., None]


def compile_kernel(module: tvm.IRModule, isa: Isa, symbol: str, *, in_place: bool = False) -> bytes:
    """Return the object file of a kernel: one function named `symbol`, nothing undefined but libm.

    Args:
        module: of a family's `build`.
        isa: what the code may use; nothing of this machine's CPU gets in.
        symbol: name of the function.
        in_place: an output may be the same memory as an input.

    Raises:
        tvm.error.TVMError: the schedule cannot be lowered; a fault of the kernel.
    """
    target = tvm.target.Target(isa.llvm_target)
    target = target.with_host(target)
    function = _lower(module, target)
    function = _plain_c(function, symbol, in_place)
    finish = [tirx.transform.CommonSubexprElim(), tirx.transform.VerifyMemory(), tirx.transform.LowerIntrin()]
    lowered = ir.transform.Sequential(finish)(tvm.IRModule({symbol: function}))
    built = tvm.get_global_func("target.build.llvm")(lowered, target)
    with tempfile.TemporaryDirectory(prefix=folder_prefix("kernel")) as folder:
        path = Path(folder) / "kernel.o"
        built.write_to_file(str(path), "o")
        return path.read_bytes()


def load_kernel(module: tvm.IRModule, isa: Isa, *, in_place: bool = False) -> Kernel:
    """Return a kernel as a Python function `f(*arrays, begin, end)`, for tests and trials.

    Raises:
        MissingTool: there is no linker.
    """
    code = compile_kernel(module, isa, "kernel", in_place=in_place)
    with tempfile.TemporaryDirectory(prefix=folder_prefix("kernel")) as folder:
        source, library = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        source.write_bytes(code)
        link([source], library, isa)
        function = ctypes.CDLL(str(library)).kernel
    function.restype = None

    def call(*arguments: Array | int) -> None:
        arrays, bounds = arguments[:-2], arguments[-2:]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays if isinstance(array, np.ndarray)]
        assert len(pointers) == len(arrays), "arrays, then begin and end"
        function(*pointers, *[ctypes.c_int32(int(bound)) for bound in bounds])

    return call


def tasks_of(module: tvm.IRModule) -> int:
    """Return the extent of the outermost loop of a scheduled function, 1 where there are several loops."""
    loop = _outermost(_body_of(module["main"].body))
    return int(loop.extent) if loop is not None else 1


def aligned_array(shape: Sequence[int], dtype: str) -> Array:
    """Return a zeroed array whose data starts on a 64-byte border, as an arena's buffers do."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(tuple(shape))


def _lower(module: tvm.IRModule, target: tvm.target.Target) -> tirx.PrimFunc:
    """Lower blocks, vectors and unrolled loops, and cut the outermost loop of scheduled functions."""
    given = module["main"]
    assert len(module.functions) == 1, "a kernel is one PrimFunc"
    own_range = len(given.params) >= 2 and not any(_is_buffer(p) for p in given.params[-2:])
    tasks = 0 if own_range else tasks_of(module)
    scheduled = not own_range or isinstance(given.body, s_tir.SBlockRealize)
    passes = ir.transform.Sequential(_passes(target, scheduled))
    function = passes(tvm.IRModule({"main": given}))["main"]
    return function if own_range else _cut(function, tasks)


def _passes(target: tvm.target.Target, scheduled: bool) -> list[ir.transform.Pass]:
    """Return the passes; what is written by hand has neither blocks nor bounds to be found.

    For such code the others change nothing, and take up to three quarters of the time.
    """
    s, t = s_tir.transform, tirx.transform
    if scheduled:
        blocks = [
            s.CanonicalizeLoop(), s.LowerInitBlock(), s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(), s.CompactBufferAllocation(), s.LowerMatchBuffer(), s.StmtSimplify(),
            s.AnnotateIrregularLoop(), s.LowerOpaqueBlock(),
        ]  # fmt: skip
        bounds = [s.LoopPartition()]
        split = [s.HoistIfThenElse(), t.UnrollLoop(), s.RenormalizeSplitPattern()]
    else:
        blocks, bounds, split = [s.StmtSimplify()], [], [t.UnrollLoop()]
    return [
        t.BindTarget(target), *blocks, t.FlattenBuffer(), t.NarrowDataType(32), *bounds,
        t.VectorizeLoop(True), t.StorageRewrite(), *split,
        t.StmtSimplify(), t.RemoveNoOp(), s.RewriteUnsafeSelect(),
    ]  # fmt: skip


def _cut(function: tirx.PrimFunc, tasks: int) -> tirx.PrimFunc:
    """Give a function the parameters begin and end, and let its outermost loop run from one to the other."""
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    statements = _statements(function.body)
    loops = [statement for statement in statements if isinstance(statement, tirx.For)]
    if tasks == 1:
        declared = [s for s in statements if isinstance(s, tirx.DeclBuffer | tirx.AllocBuffer)]
        rest = [s for s in statements if not any(s.same_as(other) for other in declared)]
        guarded = tirx.IfThenElse(begin < end, _sequence(rest), None)
        body = _sequence([*declared, guarded])
    else:
        assert len(loops) == 1, "lowering split the outermost loop"
        assert int(loops[0].extent) == tasks, "lowering changed the outermost loop"
        body = _sequence([_ranged(s, begin, end) if s.same_as(loops[0]) else s for s in statements])
    return tirx.PrimFunc([*function.params, begin, end], body, attrs=function.attrs)


def _ranged(loop: tirx.For, begin: tirx.Var, end: tirx.Var) -> tirx.For:
    kind = tirx.ForKind.SERIAL
    return tirx.For(loop.loop_var, begin, end - begin, kind, loop.body, None, loop.annotations)


def _plain_c(function: tirx.PrimFunc, symbol: str, in_place: bool) -> tirx.PrimFunc:
    """Replace buffer parameters by pointers, and name the function."""
    parameters, declared = [], []
    for parameter in function.params:
        if not _is_buffer(parameter):
            parameters.append(parameter)
            continue
        kind = ir.PointerType(ir.PrimType(str(parameter.ty.dtype)), "global")
        pointer = tirx.Var(parameter.name, kind)
        parameters.append(pointer)
        declared.append(tirx.DeclBuffer(parameter, data=pointer))
    body = _sequence([*declared, *_statements(function.body)])
    attributes = {key: value for key, value in function.attrs.items() if key != "tirx.noalias"}
    result = tirx.PrimFunc(parameters, body).with_attrs({**attributes, "global_symbol": symbol})
    return result if in_place else result.with_attr("tirx.noalias", True)


def _is_buffer(parameter: tirx.Var) -> bool:
    return isinstance(parameter.ty, tirx.buffer.BufferType)


def _body_of(statement: tirx.Stmt) -> tirx.Stmt:
    """Return what stands inside the root block of a scheduled function."""
    while isinstance(statement, s_tir.SBlockRealize):
        statement = statement.block.body
    return statement


def _outermost(statement: tirx.Stmt) -> tirx.For | None:
    loops = [part for part in _statements(statement) if isinstance(part, tirx.For)]
    return loops[0] if len(loops) == 1 else None


def _statements(statement: tirx.Stmt) -> list[tirx.Stmt]:
    return list(statement.seq) if isinstance(statement, tirx.SeqStmt) else [statement]


def _sequence(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    """Return the statements as one; TVM refuses a sequence of a single one."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
