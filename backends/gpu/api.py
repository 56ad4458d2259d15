"""Calls of the CUDA driver with every result checked, and what users are told when one fails."""

from __future__ import annotations

import ctypes
import functools

from ...compiler.cuda import load_driver
from ...compiler.errors import MissingTool, ParedError, TargetError

_OUT_OF_MEMORY, _NOT_INITIALIZED, _NO_DEVICE = 2, 3, 100
_NO_BINARY, _INVALID_IMAGE = 209, 200
# After these the driver answers every later call of the process with the same error: "to continue using CUDA,
# the process must be terminated and relaunched" (cuda.h); 214 and 220 are faults of memory and links.
STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721, 810, 911})


class Api:
    """The driver's library, initialised.

    Args:
        name: of the library, as `load_driver` takes it.

    Attributes:
        lost: index of a device -> the failure after which nothing runs on it in this process.

    Raises:
        MissingTool: `cuda-driver-missing`.
        TargetError: `cuda-device-missing`.
        ParedError: `cuda-failed`, `cuda-forked`.
    """

    def __init__(self, name: str) -> None:
        driver = load_driver(name)
        if driver is None:
            raise MissingTool(
                "cuda-driver-missing",
                f"the CUDA driver ({name or 'libcuda.so.1'}) is not on this machine",
                "run the artifact on a machine with an NVIDIA GPU, or emulate it: pip install 'pared[gpu]', "
                "PARED_CUDA_DEVICE=emulated",
            )
        self._driver = driver
        self.lost: dict[int, str] = {}
        self("cuInit", 0)

    def __call__(self, name: str, *args: object) -> None:
        """Call a function; raises what its result says."""
        code = self.code(name, *args)
        if code:
            raise self.error(name, code)

    def code(self, name: str, *args: object) -> int:
        """Call a function and return its result; raises where this driver has none of that name."""
        try:
            function = getattr(self._driver, name)
        except AttributeError as err:
            raise ParedError(
                "cuda-failed", f"this CUDA driver has no {name}", "install a driver for CUDA 12 or newer"
            ) from err
        return int(function(*args))

    def said(self, name: str, code: int) -> str:
        """Return what happened in the driver's words."""
        text = ctypes.c_char_p()
        self._driver.cuGetErrorName(code, ctypes.byref(text))
        return f"{name}: {text.value.decode() if text.value else f'error {code}'}"

    def error(self, name: str, code: int) -> ParedError:
        """Return the error for a failed call."""
        said = self.said(name, code)
        if code == _OUT_OF_MEMORY:
            return ParedError(
                "cuda-out-of-memory", said, "use a smaller batch (--shape), or free the device (nvidia-smi)"
            )
        if code == _NO_DEVICE:
            return TargetError(
                "cuda-device-missing", said, "run the artifact on a machine with an NVIDIA GPU"
            )
        if code == _NOT_INITIALIZED:
            return ParedError(
                "cuda-forked",
                f"{said}: this process was forked from one that used CUDA",
                'start workers with the "spawn" method and load the artifact in them',
            )
        if code in (_NO_BINARY, _INVALID_IMAGE):
            return TargetError("cuda-code", f"{said}: the device takes none of the code", "compile it again")
        return ParedError("cuda-failed", said, "check driver and device (nvidia-smi)")


@functools.cache
def driver_api(name: str) -> Api:
    """Return the one `Api` of a library; see there."""
    return Api(name)
