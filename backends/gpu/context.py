"""The primary context of one CUDA device: calls in it, and what is lost with it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...compiler.errors import ParedError
from .api import STICKY, Api


class DeviceContext:
    """Holds on to the primary context until `release`.

    Args:
        api: the driver.
        index: of the device.

    Raises:
        ParedError: `cuda-context-lost`, an earlier failure took the device; what else the driver says.

    Attributes:
        device: the driver's handle.
    """

    def __init__(self, api: Api, index: int) -> None:
        self._api, self._index, self._process = api, index, os.getpid()
        self._check_alive()
        self.device, self._handle = ctypes.c_int(), ctypes.c_void_p()
        self._released = False
        api("cuDeviceGet", ctypes.byref(self.device), index)
        api("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), self.device)

    def _check_alive(self) -> None:
        if self._index in self._api.lost:
            raise ParedError(
                "cuda-context-lost",
                f"device {self._index} is lost to this process since {self._api.lost[self._index]}",
                "start a new process and load the artifact there",
            )
        if os.getpid() != self._process:
            raise ParedError(
                "cuda-forked",
                "the artifact was loaded before this process was forked",
                'start workers with the "spawn" method and load the artifact in them',
            )

    def call(self, name: str, *args: object) -> None:
        """Call the driver in this context; raises what goes wrong."""
        self._check_alive()
        code = self._inside(name, *args)
        if code in STICKY:
            self._api.lost[self._index] = self._api.said(name, code)
            self._check_alive()
        if code:
            raise self._api.error(name, code)

    def attempt(self, name: str, *args: object) -> int:
        """Call what frees something: where it fails, the end of the process frees it."""
        return 0 if os.getpid() != self._process else self._inside(name, *args)

    def fetch(self, name: str, *args: object) -> None:
        """Call the driver although the device may be closed; raises what goes wrong."""
        self._check_alive()
        code = self.attempt(name, *args)
        if code:
            raise self._api.error(name, code)

    def _inside(self, name: str, *args: object) -> int:
        """Call the driver in this context; that of another library is current again afterwards."""
        before = ctypes.c_void_p()
        self._api.code("cuCtxGetCurrent", ctypes.byref(before))
        if before.value == self._handle.value:
            return self._api.code(name, *args)
        code = self._api.code("cuCtxSetCurrent", self._handle) or self._api.code(name, *args)
        if before.value:
            self._api.code("cuCtxSetCurrent", before)
        return code

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this context the thread's, for calls of a library; afterwards the one before is again."""
        before = ctypes.c_void_p()
        self._check_alive()
        self._api("cuCtxGetCurrent", ctypes.byref(before))
        self._api("cuCtxSetCurrent", self._handle)
        try:
            yield
        finally:
            if before.value:
                self._api.code("cuCtxSetCurrent", before)

    def finish(self, works: list[Callable[[], None]]) -> None:
        """Do what frees something of a library; on a lost device and in a forked process nothing is left."""
        if works and self._index not in self._api.lost and os.getpid() == self._process:
            with self.current():
                for work in works:
                    work()

    def release(self) -> None:
        """Let go of the context; a second call does nothing."""
        if not self._released:
            self._released = True
            self.attempt("cuDevicePrimaryCtxRelease_v2", self.device)
