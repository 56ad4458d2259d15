"""Network files of other kinds as ONNX: what the importer calls for `.nir` and `.net`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .lava import read_lava
from .plan import make_plan
from .read import read_nir
from .to_onnx import to_onnx

if TYPE_CHECKING:
    import onnx


def import_nir(path: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Read a NIR file; returns the model and notes; raises as `read_nir` and `make_plan`."""
    plan = make_plan(read_nir(path))
    return to_onnx(plan, "NIR"), plan.notes


def import_lava(path: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Read a lava-dl file; returns the model and notes; raises as `read_lava` and `make_plan`."""
    plan = make_plan(read_lava(path))
    return to_onnx(plan, "lava-dl"), plan.notes
