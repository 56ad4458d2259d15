"""Tensor-core instructions as TVM's tensorize takes them: 16x16x16 fragments of nvcuda::wmma.

Each is a pair of functions: the loops it stands for, and the call that TVM prints. TVM has a list of its own,
without bfloat16, and importing it takes half a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# Operand type -> type of the sums.
SUMS = {"float16": "float32", "bfloat16": "float32", "int8": "int32"}
SIZE = 16
_TILE = f"({SIZE}, {SIZE})"


@dataclass(frozen=True)
class Intrinsics:
    """Names of the five steps of a product of fragments."""

    fill: str
    load_a: str
    load_b: str
    multiply: str
    store: str


@cache
def intrinsics(dtype: str, *, b_by_columns: bool) -> Intrinsics:
    """Return the steps for operands of `dtype` in dynamic shared memory.

    Args:
        dtype: of both operands.
        b_by_columns: B lies as [j, k] instead of [k, j].
    """
    sums, turned = SUMS[dtype], "columns" if b_by_columns else "rows"
    made = Intrinsics(
        f"pared_fill_{sums}", f"pared_load_a_{dtype}", f"pared_load_b_{turned}_{dtype}",
        f"pared_multiply_{turned}_{dtype}", f"pared_store_{sums}",
    )  # fmt: skip
    _register(made.fill, *_fill(sums))
    _register(made.load_a, *_load(dtype, "a", "row_major"))
    _register(made.load_b, *_load(dtype, "b", "col_major" if b_by_columns else "row_major"))
    _register(made.multiply, *_multiply(dtype, sums, "j, k" if b_by_columns else "k, j"))
    _register(made.store, *_store(sums))
    return made


@cache
def dot4() -> str:
    """Return the step C[0] += sum of A[0:4] * B[0:4], bytes in registers (dp4a)."""
    head = "def {}(a: T.handle, b: T.handle, c: T.handle) -> None:\n"
    place = 'offset_factor=1, align=4, scope="local"'
    head += "".join(
        f'    {name} = T.match_buffer({name.lower()}, ({size},), "{kind}", {place})\n'
        for name, size, kind in (("A", 4, "int8"), ("B", 4, "int8"), ("C", 1, "int32"))
    )
    head += '    with T.sblock("root"):\n        T.reads(C[0], A[0:4], B[0:4])\n        T.writes(C[0])\n'
    element = (
        '        for i in range(4):\n            with T.sblock("element"):\n'
        '                vi = T.axis.remap("R", [i])\n'
        f"                C[0] = C[0] + {_cast('A[vi]', 'int32')} * {_cast('B[vi]', 'int32')}\n"
    )
    parts = ", ".join(f'{name}.vload([0], "int8x4")' for name in "AB")
    call = f'        C[0] = T.call_pure_extern("__dp4a", {parts}, C[0], dtype="int32")\n'
    _register("pared_dot4", head.format("loops") + element, head.format("call") + call)
    return "pared_dot4"


def _register(name: str, loops: str, call: str) -> None:
    import tvm
    from tvm.s_tir import TensorIntrin

    head = "@T.prim_func(s_tir=True)\n"
    parts = [tvm.script.from_source(head + text, s_tir=True) for text in (loops, call)]
    TensorIntrin.register(name, *parts, override=True)


def _buffer(name: str, dtype: str, scope: str, strides: str = "") -> str:
    """Return the line that declares a tile of a buffer; `strides` names its two strides."""
    tail = f", strides=[{strides}]" if strides else ""
    place = f'align=64, offset_factor={SIZE}, scope="{scope}"'
    return f'    {name} = T.match_buffer({name.lower()}, {_TILE}, "{dtype}", {place}{tail})\n'


def _strides(*names: str) -> str:
    return "".join(f"    {name} = T.int32()\n" for name in names)


def _body(reads: str, writes: str, lines: str) -> str:
    whole = f"[0:{SIZE}, 0:{SIZE}]"
    read = ", ".join(f"{name}{whole}" for name in reads)
    return f'    with T.sblock("root"):\n        T.reads({read})\n        T.writes({writes}{whole})\n{lines}'


def _copy(reads: str, writes: str, value: str) -> str:
    """Return the loops over a tile."""
    lines = (
        f"        for i, j in T.grid({SIZE}, {SIZE}):\n"
        '            with T.sblock("element"):\n'
        '                vi, vj = T.axis.remap("SS", [i, j])\n'
        f"                {writes}[vi, vj] = {value}\n"
    )
    return _body(reads, writes, lines)


def _fragment(name: str, row: str) -> str:
    """Return the number of a tile among the fragments of its buffer, whose rows are `row` elements apart."""
    return f"{name}.elem_offset // {row} // {SIZE} * ({row} // {SIZE}) + {name}.elem_offset % {row} // {SIZE}"


def _fill(dtype: str) -> tuple[str, str]:
    scope = "wmma.accumulator"
    loops = f"def loops(c: T.handle) -> None:\n{_buffer('C', dtype, scope)}"
    loops += _copy("", "C", f'T.cast(0, "{dtype}")' if dtype != "int32" else "0")
    call = f"def call(c: T.handle) -> None:\n{_strides('d1', 'd0')}{_buffer('C', dtype, scope, 'd1, d0')}"
    line = f"T.tvm_fill_fragment(C.data, 16, 16, 16, {_fragment('C', 'd1')}, T.float32(0), dtype='void')"
    return loops, call + _body("", "C", f"        T.evaluate({line})\n")


def _load(dtype: str, operand: str, order: str) -> tuple[str, str]:
    shared, scope = "shared.dyn", f"wmma.matrix_{operand}"
    head = "def {}(a: T.handle, c: T.handle) -> None:\n"
    loops = head.format("loops") + _buffer("A", dtype, shared) + _buffer("C", dtype, scope)
    call = head.format("call") + _strides("s1", "s0", "d1", "d0")
    call += _buffer("A", dtype, shared, "s1, s0") + _buffer("C", dtype, scope, "d1, d0")
    line = (
        f"T.tvm_load_matrix_sync(C.data, 16, 16, 16, {_fragment('C', 'd1')}, "
        f"A.access_ptr('r', ptr_type='{dtype}'), s1, '{order}', dtype='void')"
    )
    return loops + _copy("A", "C", "A[vi, vj]"), call + _body("A", "C", f"        T.evaluate({line})\n")


def _store(dtype: str) -> tuple[str, str]:
    shared, scope = "shared.dyn", "wmma.accumulator"
    head = "def {}(a: T.handle, c: T.handle) -> None:\n"
    loops = head.format("loops") + _buffer("A", dtype, scope) + _buffer("C", dtype, shared)
    call = head.format("call") + _strides("s1", "s0", "d1", "d0")
    call += _buffer("A", dtype, scope, "d1, d0") + _buffer("C", dtype, shared, "s1, s0")
    line = (
        f"T.tvm_store_matrix_sync(A.data, 16, 16, 16, {_fragment('A', 'd1')}, "
        f"C.access_ptr('w', ptr_type='{dtype}'), s1, 'row_major', dtype='void')"
    )
    return loops + _copy("A", "C", "A[vi, vj]"), call + _body("A", "C", f"        T.evaluate({line})\n")


def _cast(value: str, dtype: str) -> str:
    return f'T.cast({value}, "{dtype}")'


def _multiply(dtype: str, sums: str, b_index: str) -> tuple[str, str]:
    scopes = {"A": (dtype, "wmma.matrix_a"), "B": (dtype, "wmma.matrix_b"), "C": (sums, "wmma.accumulator")}
    head = "def {}(a: T.handle, b: T.handle, c: T.handle) -> None:\n"
    loops = head.format("loops") + "".join(_buffer(n, *scopes[n]) for n in "ABC")
    place = ", ".join(f"v{axis}" for axis in b_index.split(", "))
    element = (
        f"        for i, j, k in T.grid({SIZE}, {SIZE}, {SIZE}):\n"
        '            with T.sblock(""):\n'
        '                vi, vj, vk = T.axis.remap("SSR", [i, j, k])\n'
        f"                C[vi, vj] = C[vi, vj] + {_cast('A[vi, vk]', sums)} * {_cast(f'B[{place}]', sums)}\n"
    )
    call = head.format("call") + _strides("a1", "a0", "b1", "b0", "c1", "c0")
    call += "".join(_buffer(n, *scopes[n], f"{n.lower()}1, {n.lower()}0") for n in "ABC")
    parts = [f"{n}.data, {_fragment(n, f'{n.lower()}1')}" for n in "CABC"]
    line = f"        T.evaluate(T.tvm_mma_sync({', '.join(parts)}, dtype='void'))\n"
    return loops + _body("CAB", "C", element), call + _body("CAB", "C", line)
