"""Imports OpenVINO quietly: its package reports every import to its maker unless the reporter is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_REPORTER = "openvino_telemetry"


@contextmanager
def no_openvino_telemetry() -> Iterator[None]:
    """Make OpenVINO, imported inside the block, find no reporter; it has a stand-in that does nothing.

    Has no effect on a process that imported OpenVINO or the reporter before.
    """
    if _REPORTER in sys.modules:
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
    try:
        yield
    finally:
        del sys.modules[_REPORTER]
