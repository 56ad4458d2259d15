"""The CUDA driver's library: where it is, which chips it shows, and whose code they run.

Numbers are those of the driver API (https://docs.nvidia.com/cuda/cuda-driver-api/).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re

# Path of the driver's library, for systems whose loader does not find it.
LIBRARY = "PARED_CUDA_DRIVER"

_USUAL = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def driver_name() -> str:
    """Return the file that `PARED_CUDA_DRIVER` names, else an empty text."""
    return os.environ.get(LIBRARY, "")


@functools.cache
def load_driver(name: str) -> ctypes.CDLL | None:
    """Load the driver's library, `name` or where systems have it; None where no driver is there."""
    for candidate in (name,) if name else _USUAL:
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        if hasattr(library, "cuInit"):  # else it is some other library
            return library
    return None


def cuda_devices() -> tuple[str, ...]:
    """Return the chip of every CUDA device, by index; none where there is no driver.

    The driver is asked once per process, which takes no context.

    >>> all(chip.startswith("sm_") for chip in cuda_devices())
    True
    """
    return _devices(driver_name())


@functools.cache
def _devices(name: str) -> tuple[str, ...]:
    driver = load_driver(name)
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_chip(driver, index) for index in range(count.value))


def _chip(driver: ctypes.CDLL, device: int) -> str:
    number, digits = ctypes.c_int(), ""
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        digits += str(number.value)
    return f"sm_{digits}"


def runs_on(code: str, chip: str) -> bool:
    """Tell whether a chip runs machine code: of its major version, from the code's minor version on.

    Code for `sm_90a` uses what that chip alone has.

    >>> runs_on("sm_80", "sm_89"), runs_on("sm_89", "sm_80"), runs_on("sm_80", "sm_90")
    (True, False, False)
    >>> runs_on("sm_90a", "sm_90"), runs_on("sm_120", "sm_121")
    (True, True)
    """
    need, have = _version(code), _version(chip)
    if need is None or have is None:
        return False
    (major, minor, own), (here, minor_here, _) = need, have
    return major == here and (minor == minor_here if own else minor <= minor_here)


def _version(chip: str) -> tuple[int, int, bool] | None:
    found = re.fullmatch(r"sm_(\d+)(\d)([a-z]?)", chip)
    return (int(found[1]), int(found[2]), bool(found[3])) if found else None
