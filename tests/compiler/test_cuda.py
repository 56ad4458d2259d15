"""The CUDA driver's library, where it is and where something else is."""

from __future__ import annotations

import ctypes.util

import pytest

from pared.compiler.cuda import cuda_devices, load_driver


def test_another_library_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ctypes.util.find_library("m")
    if other is None:
        pytest.skip("the system's loader finds no libm")
    assert load_driver(other) is None
    monkeypatch.setenv("PARED_CUDA_DRIVER", other)
    assert cuda_devices() == ()
