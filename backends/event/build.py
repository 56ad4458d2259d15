"""Builds the event kernels with the system's C compiler, for what this machine or a target offers."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ...compiler.errors import MissingTool
from ...compiler.machine import find_machine
from ...compiler.target import Target
from ...compiler.temporary import folder_prefix

LIBRARY = "model.so"
_SOURCE = Path(__file__).parent / "c" / "events.c"
_TIMEOUT_S = 300

# What the fast kernels use; all or none, so that there are two builds to test.
_VNNI = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
_FLAGS = {"avx512_vnni": "avx512vnni"}


def features_of(target: Target) -> tuple[str, ...]:
    """Return the CPU features that kernels for a target use; empty for portable code."""
    machine = find_machine()
    here = target.isa.arch == "host"
    offered = machine.cpu_features if here else target.isa.features
    arch = machine.arch if here else target.isa.arch
    return _VNNI if arch == "x86_64" and set(_VNNI) <= set(offered) else ()


def compiler() -> str | None:
    """Return the path of a C compiler, or None."""
    return next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)


def build(features: tuple[str, ...]) -> bytes | None:
    """Return a shared library of the kernels; None without a C compiler. Equal inputs give equal bytes.

    Raises:
        MissingTool: `linker-failed`, with what the compiler said.
    """
    found = compiler()
    if found is None:
        return None
    flags = [f"-m{_FLAGS.get(name, name)}" for name in features]
    with tempfile.TemporaryDirectory(prefix=folder_prefix("event")) as folder:
        library = Path(folder) / LIBRARY
        command = [
            found, "-shared", "-fPIC", "-O3", "-std=c11", "-g0", "-ffp-contract=off", "-fno-math-errno",
            "-ffile-prefix-map=.=", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack", *flags,
            "-o", str(library), _SOURCE.name, "-lm",
        ]  # fmt: skip
        ran = subprocess.run(
            command, cwd=_SOURCE.parent, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if ran.returncode:
            raise MissingTool(
                "linker-failed",
                f"{found} failed with status {ran.returncode}: {ran.stderr.strip()[-600:]}",
                "check that it can build shared libraries",
            )
        return library.read_bytes()
