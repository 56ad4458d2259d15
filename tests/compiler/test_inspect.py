"""`inspect_model`: contents, cost, quantization and blockers of models whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from pared.compiler.backend import Verdict
from pared.compiler.inspect import InspectReport, QuantFormat, inspect_model
from pared.compiler.registry import BACKENDS
from pared.compiler.target import Target
from pared.compiler.target import Target as _Target
from pared.targets import load_target

CPU = Target(name="cpu", description="a CPU", backend="picky", engines=("none",))


class PickyBackend:
    """Takes everything but Relu; the rest of the protocol is not needed here."""

    name: ClassVar[str] = "picky"

    def supports(self, node: ir.Node, target: _Target) -> Verdict:
        return Verdict.no("no rectifiers here") if node.op_type == "Relu" else Verdict.yes()


def inspect(path: Path, shapes: dict[str, Sequence[int | str]] | None = None) -> InspectReport:
    return inspect_model(path, shapes, [CPU], {"picky": PickyBackend()})  # type: ignore[dict-item]


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], arrays: dict[str, np.ndarray], domain: str = ""
) -> Path:
    """Save a model float [N, 4] `x` -> float [N, 3] `y`."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 4), ("y", 3))
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(list(nodes), "g", ports[:1], ports[1:], initializer=weights)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    made = helper.make_model(graph, ir_version=8, opset_imports=opsets, producer_name="by hand")
    onnx.save(made, path)
    return path


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{op}_{output}".lower(), **attributes)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "y")]
    return save(tmp_path / "plain.onnx", nodes, {"w": np.ones((4, 3), np.float32)})


def test_the_file_is_described_as_it_is(plain: Path) -> None:
    report = inspect(plain)
    assert (report.ir_version, report.opset, report.producer) == (8, {"": 17}, "by hand")
    assert (report.ops, report.nodes, report.file_bytes) == (
        {"MatMul": 1, "Relu": 1},
        2,
        plain.stat().st_size,
    )


def test_cost_is_that_of_one_sample(plain: Path) -> None:
    report = inspect(plain)
    assert (report.parameters, report.weight_bytes, report.macs) == (12, 48, 12)


def test_symbolic_sizes_are_listed(plain: Path) -> None:
    assert inspect(plain).dynamic == ("x[0]=N",)


def test_bound_sizes_are_not_listed(plain: Path) -> None:
    report = inspect(plain, {"x": (5, 4)})
    assert (report.dynamic, report.macs) == ((), 60)


def test_a_float_model_has_no_quantization(plain: Path) -> None:
    found = inspect(plain).quantization
    assert (found.forms, found.layers, found.float_layers) == ((), (), ("matmul_h",))


def test_a_blocker_names_node_operator_and_reason(plain: Path) -> None:
    check = inspect(plain).targets[0]
    assert (check.target, check.ok) == ("cpu", False)
    assert [(b.node, b.op, b.reason) for b in check.blockers] == [("relu_y", "Relu", "no rectifiers here")]


def test_nodes_in_control_flow_block_too(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"b{op}", TensorProto.FLOAT, ["N", 3])
        return helper.make_graph([node(op, "h", f"b{op}")], op, [], [output])

    nodes = [
        node("MatMul", "x w", "h"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    path = save(tmp_path / "if.onnx", nodes, {"w": np.ones((4, 3), np.float32), "c": np.array(True)})
    report = inspect(path)
    assert report.ops["Relu"] == 1
    assert [b.op for b in report.targets[0].blockers] == ["Relu"]


def qdq_model(path: Path) -> Path:
    arrays = {
        "q": np.ones((4, 3), np.int8),
        "ws": np.full(3, 0.5, np.float32),
        "xs": np.array(0.25, np.float32),
        "xz": np.array(128, np.uint8),
    }
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "q ws", "wd", axis=1),
        node("MatMul", "xd wd", "y"),
    ]
    return save(path, nodes, arrays)


def test_qdq_is_told_per_operand(tmp_path: Path) -> None:
    found = inspect(qdq_model(tmp_path / "qdq.onnx")).quantization
    assert found.forms == ("QDQ",)
    assert [(layer.node, layer.op) for layer in found.layers] == [("matmul_y", "MatMul")]
    assert found.layers[0].operands == (
        QuantFormat("xd", False, 8, False, "asymmetric", None, 0),
        QuantFormat("wd", True, 8, True, "symmetric", 1, 0),
    )


def test_quantization_behind_a_transpose_is_found(tmp_path: Path) -> None:
    arrays = {"q": np.ones((3, 4), np.int8), "s": np.array(0.5, np.float32)}
    nodes = [
        node("DequantizeLinear", "q s", "d"),
        node("Transpose", "d", "t", perm=[1, 0]),
        node("MatMul", "x t", "y"),
    ]
    found = inspect(save(tmp_path / "t.onnx", nodes, arrays)).quantization
    assert [operand.operand for operand in found.layers[0].operands] == ["d"]


def test_qonnx_in_an_old_spelling_is_told(tmp_path: Path) -> None:
    arrays = {
        "w": np.ones((4, 3), np.float32),
        "s": np.array(0.5, np.float32),
        "z": np.array(0.0, np.float32),
        "b": np.array(4.0, np.float32),
    }
    nodes = [
        node("Quant", "w s z b", "wq", domain="onnx.brevitas", signed=1, narrow=1, rounding_mode="ROUND"),
        node("MatMul", "x wq", "y"),
    ]
    report = inspect(save(tmp_path / "qonnx.onnx", nodes, arrays, domain="onnx.brevitas"))
    assert report.quantization.forms == ("QONNX",)
    assert report.ops["onnx.brevitas::Quant"] == 1
    assert [operand.bits for operand in report.quantization.layers[0].operands] == [4]


def test_targets_that_judge_wholes_say_what_they_look_at(plain: Path) -> None:
    backends = {name: BACKENDS[name]() for name in ("cpu", "event", "fpga")}
    targets = [load_target(name) for name in ("cpu", "event-speck2f", "fpga-ecp5-25k")]
    cpu, event, fpga = inspect_model(plain, None, targets, backends).targets
    assert cpu.beyond_nodes == ""
    assert "cores, memory" in event.beyond_nodes
    assert "that it fits" in fpga.beyond_nodes
