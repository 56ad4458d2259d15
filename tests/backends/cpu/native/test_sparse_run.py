"""Pruned models in engine `native`: which kernel a layer gets, and that results are the reference's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.lower import lower
from pared.backends.cpu.native.timing import Decisions, deciding
from pared.backends.reference import evaluate
from pared.compiler.artifact.read import open_artifact
from pared.compiler.ir.importer import import_model
from pared.compiler.rebuild import rebuild_artifact
from pared.compiler.runtime import load

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")


def weights(shape: tuple[int, ...], zeros: float, rows: int = 1) -> np.ndarray:
    rng = np.random.default_rng(len(shape) * shape[0])
    gone = rng.random((-(-shape[0] // rows), *shape[1:])) < zeros
    weight = (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
    weight[gone.repeat(rows, axis=0)[: shape[0]]] = 0
    return weight


def network(zeros: float, rows: int = 1, batch: int | str = 1) -> onnx.ModelProto:
    """Convolutions with a shortcut between them, flattened into a dense layer."""
    shapes = {"a": (32, 16, 3, 3), "b": (32, 32, 3, 3), "c": (32, 16, 1, 1), "d": (48, 32 * 36)}
    stored = [numpy_helper.from_array(weights(shape, zeros, rows), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["ya"], name="A", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["ya"], ["ra"]),
        helper.make_node("Conv", ["ra", "b"], ["yb"], name="B", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["x", "c"], ["yc"], name="C", strides=[2, 2]),
        helper.make_node("Add", ["yb", "yc"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["y"], name="D", transB=1),
    ]
    ports = [
        helper.make_tensor_value_info("x", 1, [batch, 16, 12, 12]),
        helper.make_tensor_value_info("y", 1, [batch, 48]),
    ]
    graph = helper.make_graph(nodes, "pruned", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def families(proto: onnx.ModelProto, batch: int = 1) -> list[str]:
    return [step.family for step in lower(import_model(proto).model, host_isa(), batch).steps]


def test_mostly_zero_layers_get_sparse_kernels() -> None:
    found = families(network(0.95))
    assert found.count("sparse_f32") >= 2
    assert not {"conv_f32", "winograd_f32"} & set(found)


def test_layers_with_common_zeros_get_block_kernels() -> None:
    assert families(network(0.7, rows=32)).count("sparse_blocks_f32") == 4


def test_a_close_case_repeats_the_recorded_choice() -> None:
    """Products of one row with half of the blocks gone: close to dense by prediction."""
    proto, isa = network(0.5, rows=16), host_isa()
    assert isinstance(isa, Isa)
    with deciding(Decisions(isa, recorded={})) as first:
        families(proto)
    choices = [key for key in first.made if key.startswith("sparse ")]
    assert choices
    for sparse in (True, False):
        # A key reads: sparse FAMILY SPEC or FAMILY SPEC.
        wanted = {k: (k.split()[1] if sparse else k.split(" or ")[1].split()[0]) for k in choices}
        with deciding(Decisions(isa, recorded={**first.made, **wanted})) as again:
            found = families(proto)
        assert sum(family.startswith("sparse") for family in found) >= len(choices) or not sparse
        assert {key: again.made[key] for key in choices} == wanted


def test_a_rebuild_gives_the_same_bytes(tmp_path: Path) -> None:
    import pared

    onnx.save(network(0.6, rows=16), tmp_path / "m.onnx")
    pared.compile(tmp_path / "m.onnx", engine="native", threads=1, output=tmp_path / "out")
    assert rebuild_artifact(tmp_path / "out").same


@pytest.mark.parametrize("zeros", [0.0, 0.25])
def test_other_layers_stay_dense(zeros: float) -> None:
    assert not any(family.startswith("sparse") for family in families(network(zeros)))


@pytest.mark.parametrize(("zeros", "rows"), [(0.95, 1), (0.7, 32), (0.8, 16)])
def test_constants_do_not_depend_on_the_batch(zeros: float, rows: int) -> None:
    proto = network(zeros, rows, batch="n")
    one, two = (lower(import_model(proto).model, host_isa(), batch) for batch in (1, 2))
    assert [s.family for s in one.steps] == [s.family for s in two.steps]
    assert [c.array.size for c in one.constants] == [c.array.size for c in two.constants]


@pytest.mark.parametrize(
    ("zeros", "rows", "batch"), [(0.95, 1, 1), (0.7, 32, 1), (0.8, 16, 3), (1.0, 1, 1), (0.9, 1, "n")]
)
def test_results_are_the_references(tmp_path: Path, zeros: float, rows: int, batch: int | str) -> None:
    import pared

    proto = network(zeros, rows, batch)
    pared.compile(proto, target="cpu", engine="native", threads=1, output=tmp_path / "out")
    count = batch if isinstance(batch, int) else 2
    x = np.random.default_rng(0).standard_normal((count, 16, 12, 12)).astype(np.float32)
    want = evaluate(import_model(proto).model, {"x": x})["y"]
    bound = open_artifact(tmp_path / "out").manifest.bounds["y"]
    with load(tmp_path / "out", threads=1) as model:
        got = model.run({"x": x})["y"]
    assert np.all(abs(got - want) <= bound.atol + bound.rtol_of_max * abs(want).max())
