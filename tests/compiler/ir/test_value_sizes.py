"""Values too large to hold are refused by their inferred size, before anything allocates them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pared.compiler.errors import ModelError
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.value_sizes import MOST_ELEMENTS, check_value_sizes


def filled(count: int) -> ir.Model:
    """A model that fills `count` elements and takes their largest."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1] x, int64[1] n) => (float[1] y) {
            [fill] big = ConstantOfShape(n)
            [largest] m = ReduceMax(big)
            [add] y = Add(x, m)
        }"""
    )
    size = model.graph.inputs.pop()
    size.const_value = ir.tensor(np.array([count], np.int64), name="n")
    model.graph.register_initializer(size)
    return model


def test_a_value_of_a_billion_elements_is_refused_with_its_node() -> None:
    with pytest.raises(ModelError, match=r"'fill' \(ConstantOfShape\).*1000000000 elements") as caught:
        import_model(filled(10**9))
    assert caught.value.reason == "value-too-large"


def test_a_value_of_the_largest_size_is_taken() -> None:
    assert import_model(filled(MOST_ELEMENTS)).model.graph.outputs[0].name == "y"


def test_unknown_sizes_are_taken() -> None:
    check_value_sizes(
        ir.from_onnx_text(
            """<ir_version: 10, opset_import: ["" : 21]>
            g (float[N] x, int64[1] n) => (float[M] y) { y = Expand(x, n) }"""
        )
    )


def test_a_large_weight_is_taken() -> None:
    weight = ir.LazyTensor(
        lambda: ir.tensor(np.zeros(1, np.float32)),
        dtype=ir.DataType.FLOAT, shape=ir.Shape([MOST_ELEMENTS + 1]), name="w",
    )  # fmt: skip
    value = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=weight.shape, const_value=weight)
    graph = ir.Graph([], [], nodes=[], initializers=[value], name="g", opset_imports={"": 21})
    check_value_sizes(ir.Model(graph, ir_version=10))
