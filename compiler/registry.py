"""The one visible table of passes and backends; nothing is found by scanning folders.

Entries are lazy: a name costs an import only when it is used. This module and the driver are the only
places in `compiler/` that look into `passes/` and `backends/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from .backend import Backend, BoundDeriver
from .pass_api import Pass, PassTable

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


# Reads a file as an ONNX model, with notes for the user.
ForeignReader: TypeAlias = "Callable[[Path], tuple[onnx.ModelProto, Sequence[str]]]"


def _pass(module: str, cls: str) -> Callable[[], type[Pass]]:
    def load() -> type[Pass]:
        return cast(type[Pass], getattr(importlib.import_module(f"pared.passes.{module}"), cls))

    return load


def _backend(module: str, cls: str) -> Callable[[], Backend]:
    def load() -> Backend:
        return cast(Backend, getattr(importlib.import_module(f"pared.backends.{module}"), cls)())

    return load


PASSES: PassTable = {
    "fold-branches": _pass("canonicalize.fold_branches", "FoldBranches"),
    "fold-shapes": _pass("canonicalize.fold_shapes", "FoldShapes"),
    "fold-constants": _pass("canonicalize.fold_constants", "FoldConstants"),
    "eliminate": _pass("canonicalize.eliminate", "Eliminate"),
    "fold-pad": _pass("canonicalize.fold_pad", "FoldPad"),
    "fold-batchnorm": _pass("canonicalize.fold_batchnorm", "FoldBatchnorm"),
    "fold-affine": _pass("canonicalize.fold_affine", "FoldAffine"),
    "dedupe-constants": _pass("canonicalize.dedupe_constants", "DedupeConstants"),
    "dead-code": _pass("canonicalize.dead_code", "DeadCode"),
    "relu-into-quantizer": _pass("canonicalize.relu_into_quantizer", "ReluIntoQuantizer"),
    "compact-constants": _pass("canonicalize.compact_constants", "CompactConstants"),
    "estimate-ranges": _pass("quantize.datafree", "EstimateRanges"),
    "equalize": _pass("quantize.equalize", "Equalize"),
    "absorb-bias": _pass("quantize.absorb", "AbsorbBias"),
    "balance": _pass("quantize.balance", "Balance"),
    "quantize": _pass("quantize.quantize", "Quantize"),
    "binarize": _pass("binarize.binarize", "Binarize"),
    "half": _pass("half.half", "Half"),
    "lowrank": _pass("lowrank.lowrank", "LowRank"),
    "mpo": _pass("lowrank.mpo", "Mpo"),
    "lowrank-passthrough": _pass("lowrank.passthrough", "LowRankPassthrough"),
    "short-scales": _pass("quantize.short_scales", "ShortScales"),
    "quantize-recurrent": _pass("quantize.recurrent", "QuantizeRecurrent"),
    "prune": _pass("prune.prune", "Prune"),
    "estimate-channels": _pass("prune.estimate_channels", "EstimateChannels"),
    "prune-datafree": _pass("prune.datafree", "PruneDatafree"),
    "prune-channels": _pass("prune.channels", "PruneChannels"),
    "prune-silent": _pass("prune.silent", "PruneSilent"),
    "reconstruct": _pass("prune.reconstruct", "Reconstruct"),
    "bias-correct": _pass("prune.bias", "BiasCorrect"),
    "renormalize": _pass("prune.renormalize", "Renormalize"),
}

# A macro is a name for a pipeline text; a test compares these with the orders that passes/canonicalize gives.
MACROS: Mapping[str, str] = {
    "canonicalize-exact": (
        "fold-branches,fold-shapes,fold-constants,eliminate,fold-shapes,fold-constants,eliminate,"
        "dedupe-constants,dead-code"
    ),
    "canonicalize": (
        "fold-branches,fold-shapes,fold-constants,eliminate,fold-shapes,fold-constants,eliminate,"
        "fold-pad,fold-batchnorm,fold-affine,dedupe-constants,dead-code"
    ),
}

BACKENDS: Mapping[str, Callable[[], Backend]] = {
    "cpu": _backend("cpu.backend", "CpuBackend"),
    "event": _backend("event.backend", "EventBackend"),
    "fpga": _backend("fpga.backend", "FpgaBackend"),
    "gpu": _backend("gpu.backend", "GpuBackend"),
    "nir": _backend("event.nir.backend", "NirBackend"),
    "reference": _backend("reference.backend", "ReferenceBackend"),
}


# Network files that are no ONNX, by suffix.
READERS: Mapping[str, str] = {
    ".nir": "pared.backends.event.nir.importer:import_nir",
    ".net": "pared.backends.event.nir.importer:import_lava",
}


def foreign_reader(path: Path) -> ForeignReader | None:
    """Return the reader of a network file that is no ONNX, told by its suffix; None for all others."""
    found = READERS.get(path.suffix.lower())
    if found is None:
        return None
    module, _, name = found.partition(":")
    return cast("ForeignReader", getattr(importlib.import_module(module), name))


def bound_deriver(model: ir.Model, seed: int) -> BoundDeriver:
    """Return the reference's deriver of bounds for a model."""
    module = importlib.import_module("pared.backends.reference.bound")
    return cast(BoundDeriver, module.Deriver(model, seed))
