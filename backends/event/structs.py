"""Structures of the C kernels (c/counts.h, c/delta.h), and the library that holds them."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ...compiler.errors import ArtifactError


class Step(ctypes.Structure):
    """One layer; `Layer` in C."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "kind", "wide_in", "wide_out", "readout",
            "in_h", "in_w", "in_c", "in_pitch", "in_low",
            "out_h", "out_w", "out_c", "out_pitch", "first",
            "kh", "kw", "sh", "sw", "top", "left", "dh", "dw",
            "low", "levels", "rows", "formula",
            "mode", "levels2", "in_low2", "wide_in2",
        )),
        ("break_even", ctypes.c_float),
        ("reserved", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in (
            "source", "source2", "target", "weights", "quads", "bias", "factor", "shift", "thresholds",
            "values", "table", "winograd",
        )),
        *((name, ctypes.c_int64) for name in ("active", "ran_events", "work")),
    )  # fmt: skip


class Scratch(ctypes.Structure):
    """Room that all layers share."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "start", "channel", "offset", "payload", "taken", "wide_payload", "wide_taken", "zeros",
            "transformed", "sums", "old",
        )
    )  # fmt: skip


_STATE = ("fresh", "kept", "many", "changes", "work", "ran", "all_changes", "all_work")


class Change(ctypes.Structure):
    """What changed in a population."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("plus", "minus", "wide", "pixels")),
        ("count", ctypes.c_int64),
    )


class DeltaStep(ctypes.Structure):
    """A layer that keeps its accumulators; `DeltaLayer` in C."""

    _fields_ = (
        ("layer", Step),
        *((name, ctypes.POINTER(Change)) for name in ("source", "source2", "target")),
        *((name, ctypes.c_void_p) for name in ("sums", "touched")),
        *((name, ctypes.c_int64) for name in _STATE),
    )


def open_library(path: Path) -> ctypes.CDLL:
    """Load the kernels.

    Raises:
        ArtifactError: they cannot be loaded, or are of another version.
    """
    try:
        library = ctypes.CDLL(str(path.resolve()))
        library.pared_event_run.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
        library.pared_event_delta.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
        library.pared_event_input.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int32] * 2
        library.pared_event_run.restype = None
        library.pared_event_delta.restype = ctypes.c_int
        library.pared_event_input.restype = ctypes.c_int64
        sizes = library.pared_event_layer_bytes(), library.pared_event_delta_bytes()
    except (OSError, AttributeError) as err:
        raise ArtifactError("artifact-library", f"cannot load {path}: {err}", "compile it again") from err
    if sizes != (ctypes.sizeof(Step), ctypes.sizeof(DeltaStep)):
        raise ArtifactError("artifact-version", f"{path} is of another version of pared", "compile it again")
    return library
