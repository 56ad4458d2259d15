"""Links object files to a shared library: by the system's C compiler, else by that of the `ziglang` wheel."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ....compiler.errors import MissingTool
from .isa import Isa

_TIMEOUT_S = 300


def find_compiler(arch: str) -> list[str] | None:
    """Return the command of a C compiler for `arch`, or None when there is none."""
    names = ["cc", "gcc", "clang"] if arch == platform.machine() else [f"{arch}-linux-gnu-gcc"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-gnu"]
    return None


def compiler_for(arch: str) -> list[str]:
    """Return the command of a C compiler for `arch`; raises `MissingTool` naming what would do."""
    found = find_compiler(arch)
    if found is None:
        system = "cc (gcc or clang)" if arch == platform.machine() else f"{arch}-linux-gnu-gcc"
        raise MissingTool(
            "linker-missing",
            f"engine native needs a linker for {arch}: neither {system} nor the package ziglang is here",
            "install a C compiler, or pip install ziglang",
        )
    return found


def link(sources: Sequence[Path], library: Path, isa: Isa, flags: Sequence[str] = ()) -> None:
    """Make a shared library of C sources and objects; equal inputs give equal bytes.

    No path, date or build id gets in: symbols of no interest and debug sections are stripped, and compilers
    run in the folder of the sources.
    """
    command = [
        *compiler_for(isa.arch), "-shared", "-fPIC", "-O2", "-std=c11", "-g0",
        "-ffile-prefix-map=.=", "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack",
        *flags, "-o", str(library), *[source.name for source in sources], "-lm", "-lpthread",
    ]  # fmt: skip
    folder = sources[0].parent
    assert all(source.parent == folder for source in sources), "sources lie in one folder"
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if ran.returncode:
        raise MissingTool(
            "linker-failed",
            f"{command[0]} failed with status {ran.returncode}: {ran.stderr.strip()[-600:]}",
            "check that it can build shared libraries",
        )
