"""Loads payloads: reads what was compiled and finds the device for it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pydantic

from ...compiler.cuda import cuda_devices, driver_name, load_driver, runs_on
from ...compiler.errors import ArtifactError, MissingTool, PipelineError
from .device import Device
from .driver import open_driver
from .executable import GpuExecutable
from .program import CODE, EMULATION, FORMAT, FORMATS, PROGRAM, WEIGHTS, Programs

# Index of the device that runs artifacts, or `emulated`.
VARIABLE = "PARED_CUDA_DEVICE"
EMULATED = "emulated"


def load(folder: Path, device: int | str | None = None) -> GpuExecutable:
    """Load a payload from an artifact's folder.

    Args:
        folder: with the payload's files.
        device: index of a CUDA device, or `emulated`; None takes `PARED_CUDA_DEVICE`, else the first that
            runs the code. Where there is no device at all, an emulation runs it.

    Raises:
        ArtifactError: it is damaged, or of another format.
        MissingTool: neither a driver nor TVM is here.
        TargetError: no device fits; names both chips.
        PipelineError: `cuda-device`, no index.
    """
    programs = read_programs(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
        images = [(folder / n).read_bytes() if (folder / n).exists() else b"" for n in CODE]
    except OSError as err:
        raise _damaged(folder, f"cannot read {err.filename}: {err.strerror}") from err
    if len(weights) < (needed := max(program.weight_bytes for program in programs.programs)):
        raise _damaged(folder, f"{WEIGHTS} holds {len(weights)} bytes, the program reads {needed}")
    opened = _device(folder, programs.programs[0].arch, _chosen(device))
    return GpuExecutable(programs.programs, weights, images, opened)


def read_programs(folder: Path) -> Programs:
    """Read what is launched; raises `ArtifactError`."""
    try:
        text = (folder / PROGRAM).read_bytes()
        version = _Format.model_validate_json(text).version
        if version in FORMATS:
            return Programs.model_validate_json(text)
    except OSError as err:
        raise _damaged(folder, f"cannot read {PROGRAM}: {err.strerror}") from err
    except pydantic.ValidationError as err:
        first = err.errors()[0]
        place = ".".join((PROGRAM, *map(str, first["loc"])))
        raise _damaged(folder, f"{place}: {first['msg']}") from err
    raise ArtifactError(
        "gpu-payload", f"format {version}, this is {FORMAT}", "use the version of pared that wrote it"
    )


class _Format(pydantic.BaseModel):
    """What every format has."""

    version: int


def _damaged(folder: Path, what: str) -> ArtifactError:
    return ArtifactError("gpu-payload", f"{folder}: {what}", "compile the model again")


def _chosen(device: int | str | None) -> int | str | None:
    given = os.environ.get(VARIABLE) if device is None else device
    if given in (None, "", EMULATED):
        return given or None
    if isinstance(given, int) or given.isdecimal():
        return int(given)
    raise PipelineError(
        "cuda-device", f"{given!r} is no index of a CUDA device", f'use 0, 1, ... or "{EMULATED}"'
    )


def _device(folder: Path, arch: str, chosen: int | str | None) -> Device:
    if isinstance(chosen, int):
        return open_driver(chosen)
    here = importlib.util.find_spec("tvm") is not None
    if chosen == EMULATED and not here:
        raise MissingTool("tvm-missing", "an emulated device needs apache-tvm", "pip install 'pared[gpu]'")
    if chosen == EMULATED or (here and not _has_device()):
        return emulated(folder, arch)
    fitting = [index for index, chip in enumerate(cuda_devices()) if runs_on(arch, chip)]
    return open_driver(fitting[0] if fitting else 0)


def _has_device() -> bool:
    """Tell whether there is a driver, and it either shows devices or fails in a way the user must know.

    A driver that the user names and that is not there is such a failure.
    """
    driver = load_driver(driver_name())
    return bool(driver_name()) if driver is None else int(driver.cuInit(0)) != 100  # CUDA_ERROR_NO_DEVICE


def emulated(folder: Path, arch: str) -> Device:
    """Return a device that is none, for a payload."""
    from .emulate import EmulatedDevice

    return EmulatedDevice((folder / EMULATION).read_text(encoding="utf-8"), arch)
