"""Small models for the low-rank passes, and what runs a pass on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from pared.compiler.data import open_samples
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.shapes import infer_shapes
from pared.compiler.ir.verifier import verify_graph
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context, Pass, PassStats

Floats = npt.NDArray[np.floating]


def model_of(text: str, **weights: npt.NDArray[np.generic]) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(array if array.dtype.kind == "i" else array.astype(np.float32), name)
        )
    return import_model(proto).model


def random(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def applied(
    model: ir.Model, change: Pass, data: dict[str, Floats] | None = None
) -> tuple[ir.Model, PassStats]:
    samples = None if data is None else open_samples(data, signature_of(model), purpose="calibration")
    after = model.clone()
    stats = change.apply(after, Context(calibration=samples))
    infer_shapes(after)
    verify_graph(after)
    return after, stats


def outputs(model: ir.Model, x: Floats) -> Floats:
    return run_session(make_session(model), {"x": x.astype(np.float32)})["y"]
