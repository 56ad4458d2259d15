"""Quantized models for the tests of the event backend, and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pared.backends.event.graph import EventGraph
from pared.backends.reference import evaluate
from pared.compiler.backend import Array
from pared.compiler.data import open_samples
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.importer import import_model
from pared.compiler.manager import Manager
from pared.compiler.pass_api import Context
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES

EXAMPLES = Path(__file__).parents[3] / "examples"
OPTIONS = {8: "", 4: "{bits=4 act_bits=4}", 2: "{bits=2 act_bits=2}"}


@cache
def quantized(name: str, bits: int) -> ir.Model:
    """Return an example model, quantized as `--precision` does it."""
    model = import_model(EXAMPLES / "models" / f"{name}.onnx").model
    data = np.load(EXAMPLES / "data" / "digits_calibration.npz")
    samples = open_samples({"image": data["image"][:64]}, signature_of(model), purpose="calibration")
    text = f"canonicalize,balance,quantize{OPTIONS[bits]},relu-into-quantizer,dead-code"
    passes = parse_pipeline(text, PASSES, MACROS)
    return Manager().run(model, passes, Context(calibration=samples)).model


def images(count: int = 540) -> Array:
    """Return test images of the examples."""
    return np.load(EXAMPLES / "data" / "digits_test.npz")["image"][:count].astype(np.float32)


def reference_counts(model: ir.Model, graph: EventGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the integers of every layer as the reference has them."""
    found = evaluate(model, dict(inputs), outputs=[layer.name for layer in graph.layers])
    counts = {}
    for layer in graph.layers:
        value = np.asarray(found[layer.name]).reshape(-1, *layer.shape)
        spread = [-1, *[1] * (len(layer.shape) - 1)]
        scale, offset = layer.scale.reshape(spread), layer.offset.reshape(spread)
        real = value.dtype.kind == "f"
        whole = np.rint((value - offset) / scale) if real else value.astype(np.int64) - layer.zero
        counts[layer.name] = whole.astype(np.int64)
    return counts
