"""What the repairing passes share: the original to compare with, and calibration data."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError, PipelineError
from ...compiler.pass_api import Context


def need_original(ctx: Context, name: str) -> ir.Model:
    """Return the model before the first lossy pass.

    Raises:
        PipelineError: there is nothing to repair: no lossy pass came before.
    """
    if ctx.original is None:
        raise PipelineError(
            "repair-nothing", f"{name} repairs what passes before it did, and none did", "put prune before it"
        )
    return ctx.original


def need_samples(ctx: Context, name: str) -> Samples:
    """Return the calibration samples; raises `DataError` without."""
    if ctx.calibration is None or len(ctx.calibration) == 0:
        raise DataError(
            "calibration-missing",
            f"{name} needs representative inputs, and none were given",
            "give --calib-data",
        )
    return ctx.calibration
