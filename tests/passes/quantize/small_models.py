"""Small graphs for the tests of quantization methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pared.compiler.data import Samples, open_samples
from pared.compiler.ir import walk
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.shapes import infer_shapes
from pared.compiler.ort import make_session, run_session

Array = npt.NDArray[np.generic]


def graph(text: str, **constants: Array) -> ir.Model:
    """Read ONNX text (the part from the graph's name on); inputs named in `constants` become initializers."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    for value in list(model.graph.inputs):
        if value.name in constants:
            array = np.array(constants[value.name])
            array.flags.writeable = False
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
            model.graph.register_initializer(value)
    for index, node in enumerate(walk.all_nodes(model)):
        node.name = node.name or f"n{index}"
    infer_shapes(model)
    return model


def run(model: ir.Model, inputs: Mapping[str, Array], extra: Sequence[str] = ()) -> dict[str, Array]:
    """Outputs of onnxruntime without optimisations."""
    return run_session(make_session(model, optimize="none", extra_outputs=extra), inputs)


def samples(model: ir.Model, **arrays: Array) -> Samples:
    """Calibration samples for `model`."""
    return open_samples(arrays, signature_of(model), purpose="calibration")


def constant(model: ir.Model, name: str) -> Array:
    """Array of an initializer of the main graph."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
