"""What pruning a layer is predicted to gain."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pared.compiler.driver.layer_time import layer_times
from pared.compiler.ir.importer import import_model


def product(weight: np.ndarray, rows: int, turned: bool) -> onnx.ModelProto:
    stored = numpy_helper.from_array(weight if turned else np.ascontiguousarray(weight.T), "w")
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=int(turned))
    ports = [
        helper.make_tensor_value_info(name, 1, [rows, size]) for name, size in (("x", 64), ("y", len(weight)))
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [stored])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def predicted(gone: np.ndarray, rows: int = 100, turned: bool = True) -> float:
    weight = np.random.default_rng(0).standard_normal(gone.shape).astype(np.float32)
    pruned = np.where(gone, np.float32(0), weight)
    models = [import_model(product(w, rows, turned)).model for w in (weight, pruned)]
    node = next(iter(models[0].graph))
    found = layer_times(*models, node, {}, timed=False).predicted.value
    assert found is not None
    return found


ANYWHERE = np.random.default_rng(1).random((48, 64)) < 0.9
IN_BLOCKS = (np.random.default_rng(1).random((3, 64)) < 0.9).repeat(16, axis=0)


@pytest.mark.parametrize("turned", [True, False])
def test_zeros_anywhere_gain_as_measured(turned: bool) -> None:
    assert predicted(ANYWHERE, turned=turned) == pytest.approx(0.19, abs=0.03)


def test_zeros_anywhere_gain_nothing_in_a_product_of_one_row() -> None:
    assert predicted(ANYWHERE, rows=1) > 0.7


@pytest.mark.parametrize("turned", [True, False])
def test_blocks_of_outputs_gain_what_they_leave_out_in_one_row_too(turned: bool) -> None:
    assert predicted(IN_BLOCKS, rows=1, turned=turned) == pytest.approx(1 - IN_BLOCKS.mean())


def test_few_zeros_gain_nothing() -> None:
    assert predicted(np.random.default_rng(1).random((48, 64)) < 0.2) == 1.0
