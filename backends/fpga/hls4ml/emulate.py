"""The project compiled with g++: what the HLS tool would synthesise, executed on this machine bit by bit."""

from __future__ import annotations

import ctypes
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....compiler.errors import ArtifactError, MissingTool
from ..graph import Ints
from ..tools import run_tool
from .project import NAME, Ends
from .settings import Settings, Tool

LIBRARY = "model_emulation.so"
_SOURCE = "pared_emulation.cpp"
_HEADER = "pared_emulation.h"
_GENERATED = Path("firmware/nnet_utils/nnet_code_gen.h")
_QUICK = "pared_code_gen.h"
_STANDARD = "c++17"


def need_compiler() -> str:
    """Return the C++ compiler.

    Raises:
        MissingTool: `fpga-tool-missing`, with the command that installs it.
    """
    found = shutil.which("g++")
    if found is None:
        raise MissingTool("fpga-tool-missing", "program 'g++' was not found", "apt install g++")
    return found


def build(folder: Path, ends: Ends, settings: Settings) -> Path:
    """Compile the project in `folder` into a library.

    Raises:
        ParedError: `fpga-tool-failed`, `fpga-tool-timeout`: stage, log and command.
    """
    compiler = need_compiler()
    (folder / _HEADER).write_text('extern "C" const char *pared_weights;\n')
    quick = _quick_code(folder)
    (folder / _SOURCE).write_text(_source(ends, settings.road, quick))
    includes = [f"-I{name}" for name in settings.road.includes]
    command = [
        compiler, "-O2", "-w", "-DNDEBUG", "-fPIC", "-shared", f"-std={_STANDARD}", "-fno-gnu-unique",
        *includes, "-DWEIGHTS_DIR=pared_weights", "-include", _HEADER, _SOURCE, "-o", LIBRARY,
    ]  # fmt: skip
    run_tool("emulation", command, folder, settings.timeout_s)
    (folder / _GENERATED).with_name(_QUICK).unlink(missing_ok=True)
    return folder / LIBRARY


def _quick_code(folder: Path) -> bool:
    """Write a copy of the project's generated code that is compiled without optimization, if it has any.

    hls4ml writes every window of every convolution out as assignments: a megabyte of C++ that moves data.
    Optimizing it took 34 of 42 s of a small CNN's compilation, and the result ran no faster.
    """
    generated = folder / _GENERATED
    text = generated.read_text() if generated.is_file() else ""
    head, marker, rest = text.partition("// hls4ml insert code")
    if not marker:
        return False
    push = '#pragma GCC push_options\n#pragma GCC optimize ("O0")\n'
    generated.with_name(_QUICK).write_text(f"{head}{push}{rest}\n#pragma GCC pop_options\n")
    return True


def _source(ends: Ends, road: Tool, quick: bool) -> str:
    """Return a loop over samples around hls4ml's top function, in one unit with it.

    With the quick copy first, whose include guard keeps the original out.
    """
    copy = f'"firmware/nnet_utils/{_QUICK}"'
    first = "".join(f"#include {name}\n" for name in (*(f"<{t}>" for t in road.types), copy) if quick)
    arguments = [f"in[{i}] + n * {size}" for i, size in enumerate(ends.inputs)]
    arguments += [f"out[{i}] + n * {size}" for i, size in enumerate(ends.outputs)]
    arguments += ["size"] * len(arguments) * road.sized
    return f"""{first}#include "firmware/{NAME}.cpp"
#include "{NAME}_bridge.cpp"

extern "C" {{
const char *pared_weights = "firmware/weights";

void pared_run(long count, double **in, double **out) {{
    unsigned short size = 0;
    (void)size;
    for (long n = 0; n < count; n++)
        {NAME}_double({", ".join(arguments)});
}}
}}
"""


class Library:
    """The compiled project; one run at a time, since streams and line buffers are static."""

    def __init__(self, path: Path, weights: Path, ends: Ends) -> None:
        """Load the library; the weights are read from `weights` here and never again.

        Raises:
            ArtifactError: the file is no library of this kind.
        """
        self._ends, self._lock = ends, threading.Lock()
        try:
            self._run = ctypes.CDLL(str(path)).pared_run
            where = ctypes.c_char_p.in_dll(ctypes.CDLL(str(path)), "pared_weights")
        except (OSError, AttributeError, ValueError) as err:
            raise ArtifactError("artifact-payload", f"{path}: {err}", "compile it again") from err
        self._run.restype = None
        where.value = str(weights).encode()
        self.run([np.zeros((1, size), np.int64) for size in ends.inputs])

    def run(self, entering: Sequence[Ints]) -> list[Ints]:
        """Return [N, size] per output for [N, size] per input."""
        count = len(entering[0])
        given = [np.ascontiguousarray(a, np.float64) for a in entering]
        left = [np.zeros((count, size), np.float64) for size in self._ends.outputs]
        pointers = [(ctypes.c_void_p * len(some))(*(a.ctypes.data for a in some)) for some in (given, left)]
        with self._lock:
            self._run(ctypes.c_long(count), *pointers)
        return [np.rint(a).astype(np.int64) for a in left]
