"""From a `Program` to `model.so` and `model.h`: kernels, constants and a straight line of calls in plain C.

The library needs libc, libm and pthreads, nothing of TVM. Buffers are offsets into the caller's arena,
constants lie in one read-only section. Equal programs give equal bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from ....compiler.arena import aligned
from ....compiler.temporary import folder_prefix
from .cpu_check import missing_feature
from .isa import Isa
from .kernels.int8_tiles import SLACK_BYTES
from .link import link
from .objects import Family, Kernel, compile_all
from .planner import Plan
from .program import ALIAS, Buffer, Constant, Program, Step

LIBRARY = "model.so"
HEADER = "model.h"
VERSION = 1

# Steps below this many bytes touched or multiplications are done before a second thread has woken up.
PARALLEL_WORK = 500_000

_SOURCES = ("pool.h", "pool.c", "cpu_x86.h")

# The scratch buffer of a step of this family is a status: the run ends where it is not 0.
CHECKED = "indices"

# Only the interface is visible; kernels of two models in one process must not meet.
_EXPORTS = "{ global: pared_*; local: *; };\n"


def build(program: Program, places: Plan, isa: Isa) -> Mapping[str, bytes]:
    """Return the files of a compiled program: `model.so` and `model.h`.

    Args:
        program: what to run.
        places: where its buffers lie, made by `planner.plan`.
        isa: what the code may use.

    Raises:
        MissingTool: no linker for the ISA, or it failed.
    """
    program.check()
    return _Build(program, places, isa).files()


@runtime_checkable
class _Multiplies(Protocol):
    def macs(self) -> int: ...


def _family(name: str) -> Family:
    return cast(Family, import_module(f".kernels.{name}", __package__))


class _Build:
    """One program on its way to a library."""

    def __init__(self, program: Program, places: Plan, isa: Isa) -> None:
        self.program, self.plan, self.isa = program, places, isa
        self.places = dict(places.places)
        in_place = {(step.family, step.spec) for step in program.steps if step.in_place is not None}
        self.kernels = {key: Kernel(*key, in_place=key in in_place) for key in program.kernels}
        self.offsets, self.constant_bytes = _offsets(program.constants)
        self.steps = [step for step in program.steps if step.family != ALIAS]

    @property
    def arena_bytes(self) -> int:
        """Return the size of the arena: the plan, and what quantized kernels may read behind an image."""
        return self.plan.arena_bytes + SLACK_BYTES

    def files(self) -> Mapping[str, bytes]:
        """Compile, write sources to a folder of their own, and link."""
        header = self.header().encode()
        with tempfile.TemporaryDirectory(prefix=folder_prefix("native")) as name:
            folder = Path(name)
            (folder / HEADER).write_bytes(header)
            (folder / "exports.map").write_text(_EXPORTS)
            (folder / "model.c").write_text(self.source())
            self._write_constants(folder / "constants.bin")
            for source in _SOURCES:
                (folder / source).write_bytes((files(__package__) / "c" / source).read_bytes())
            sources = [folder / "model.c", folder / "pool.c", *self._objects(folder)]
            flags = ("-Wl,--version-script=exports.map", "-Wl,-z,defs", "-Wl,-soname," + LIBRARY)
            link(sources, folder / LIBRARY, self.isa, flags)
            return {LIBRARY: (folder / LIBRARY).read_bytes(), HEADER: header}

    def _objects(self, folder: Path) -> Iterator[Path]:
        kernels = list(self.kernels.values())
        for kernel, code in zip(kernels, compile_all(kernels, self.isa, _family), strict=True):
            path = folder / f"{kernel.symbol}.o"
            path.write_bytes(code)
            yield path

    def _write_constants(self, path: Path) -> None:
        with path.open("wb") as file:
            for constant in self.program.constants:
                if self.offsets[constant.name] == file.tell():
                    file.write(constant.array.tobytes())
                    file.write(bytes(aligned(file.tell()) - file.tell()))

    # --- text -------------------------------------------------------------------------------------------

    def header(self) -> str:
        """Return the interface with this model's sizes."""
        text = (files(__package__) / "c" / "interface.h").read_text()
        own = ["/* This model. */", f"#define PARED_ARENA_BYTES {self.arena_bytes}"]
        for kind, names in (("INPUT", self.program.inputs), ("OUTPUT", self.program.outputs)):
            own.append(f"#define PARED_{kind}S {len(names)}")
            for index, name in enumerate(names):
                port = self.program.by_name[name]
                own.append(f"#define PARED_{kind}_{index}_BYTES {port.bytes} /* {_described(port)} */")
        marker = "#ifdef __cplusplus\n}\n"
        return text.replace(marker, "\n".join(own) + "\n\n" + marker)

    def source(self) -> str:
        """Return the C source: constants, one function per step, and the run."""
        parts = [
            f'#include "{HEADER}"\n#include "pool.h"\n',
            _CONSTANTS if self.constant_bytes else "",
            *self._declarations(),
            *(self._step(index, step) for index, step in enumerate(self.steps)),
            self._run(),
            self._ports("inputs", self.program.inputs),
            self._ports("outputs", self.program.outputs),
            self._info(),
            missing_feature(self.isa),
            _ENTRY,
        ]
        return "\n".join(part for part in parts if part) + "\n"

    def _declarations(self) -> Iterator[str]:
        for step in {(step.family, step.spec): step for step in reversed(self.steps)}.values():
            reads = ["const void *"] * (len(step.inputs) + len(step.constants))
            writes = ["void *"] * (len(step.outputs) + len(step.scratch))
            arguments = ", ".join([*reads, *writes, "int32_t", "int32_t"])
            yield f"void {self._symbol(step)}({arguments});"

    def _symbol(self, step: Step) -> str:
        assert step.spec is not None, "an alias has no code"
        return self.kernels[step.family, step.spec].symbol

    def _step(self, index: int, step: Step) -> str:
        pointers = [self._pointer(name) for name in step.inputs]
        pointers += [f"constants + {self.offsets[name]}" for name in step.constants]
        pointers += [self._pointer(name) for name in (*step.outputs, *step.scratch)]
        arguments = ", ".join([*pointers, "begin", "end"])
        return (
            f"static void step_{index}(const pared_memory *m, int32_t begin, int32_t end) {{\n"
            f"    {self._symbol(step)}({arguments});\n}}\n"
        )

    def _pointer(self, name: str) -> str:
        place = self.places[name]
        if place.where == "arena":
            return f"m->arena + {place.offset}"
        return f"m->{place.where}s[{place.index}]"

    def _run(self) -> str:
        lines = []
        for index, step in enumerate(self.steps):
            assert step.spec is not None, "an alias has no code"
            tasks = step.spec.tasks()
            alone = f"step_{index}(m, 0, {tasks});"
            if tasks > 1 and self._work(step) >= PARALLEL_WORK:
                lines.append(f"    if (pool) pool_share(pool, step_{index}, m, {tasks});\n    else {alone}")
            else:
                lines.append(f"    {alone}")
            if step.family == CHECKED:
                status = self._pointer(step.scratch[-1])
                lines.append(f"    if (*(const int32_t *)({status})) return PARED_INDEX;")
        body = "\n".join([*lines, "    return PARED_OK;"])
        return f"static int run(pared_pool *pool, const pared_memory *m) {{\n    (void)pool;\n{body}\n}}\n"

    def _work(self, step: Step) -> int:
        """Return multiplications or bytes touched, the larger: a core does about 50 of either per ns."""
        touched = sum(self.program.by_name[name].bytes for name in step.touched)
        spec: object = step.spec
        return max(touched, spec.macs() if isinstance(spec, _Multiplies) else 0)

    def _ports(self, kind: str, names: Sequence[str]) -> str:
        ports = [self.program.by_name[name] for name in names]
        shapes = [
            f"static const int64_t {kind}_{i}[] = {{{', '.join(map(str, (*port.shape, 0)))}}};"
            for i, port in enumerate(ports)
        ]
        rows = [
            f"    {{{_quoted(p.name)}, {_quoted(p.dtype)}, {len(p.shape)}, {kind}_{i}, {p.bytes}}},"
            for i, p in enumerate(ports)
        ]
        return "\n".join([*shapes, f"static const pared_port {kind}[] = {{", *rows, "};"])

    def _info(self) -> str:
        isa = " ".join([self.isa.arch, *self.isa.features])
        counts = f"{VERSION}, {len(self.program.inputs)}, {len(self.program.outputs)}"
        sizes = f"{self.arena_bytes}, {self.constant_bytes}"
        return f"static const pared_info info = {{{counts}, inputs, outputs, {_quoted(isa)}, {sizes}}};\n"


_CONSTANTS = """__asm__(".section .rodata\\n.balign 64\\npared_constants_:\\n.incbin \\"constants.bin\\"\\n"
        ".type pared_constants_, %object\\n.previous\\n");
extern const unsigned char constants[] __asm__("pared_constants_") __attribute__((visibility("hidden")));
"""

_ENTRY = """const pared_info *pared_model_info(void) { return &info; }

size_t pared_arena_bytes(void) { return info.arena_bytes; }

static int check(const void *const *in, void *const *out, const void *arena) {
    if (!in || !out || !arena) return PARED_NULL;
    for (int32_t i = 0; i < info.input_count; i++)
        if (!in[i]) return PARED_NULL;
    for (int32_t i = 0; i < info.output_count; i++)
        if (!out[i]) return PARED_NULL;
    return (uintptr_t)arena % 64 ? PARED_ARENA_ALIGN : PARED_OK;
}

int pared_run_on(pared_pool *pool, const void *const *in, void *const *out, void *arena) {
    int error = check(in, out, arena);
    if (error) return error;
    pared_memory memory = {in, out, arena};
    if (pool && !pool_take(pool)) pool = 0;
    error = run(pool, &memory);
    if (pool) pool_leave(pool);
    return error;
}

int pared_run(const void *const *in, void *const *out, void *arena) {
    return pared_run_on(0, in, out, arena);
}
"""


def _offsets(constants: Sequence[Constant]) -> tuple[dict[str, int], int]:
    """Return where each constant lies, equal ones once, and the bytes of all."""
    known: dict[str, int] = {}
    offsets: dict[str, int] = {}
    end = 0
    for constant in constants:
        if constant.digest not in known:
            known[constant.digest] = end
            end += aligned(constant.array.nbytes)
        offsets[constant.name] = known[constant.digest]
    return offsets, end


def _quoted(text: str) -> str:
    """Return a C string literal of any text."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'


def _described(port: Buffer) -> str:
    """Return name, dtype and shape for a comment."""
    safe = port.name.encode("ascii", "replace").decode().replace("*/", "* /")
    return f"{safe}: {port.dtype} {list(port.shape)}"
