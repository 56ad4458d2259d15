"""MACs, BOPs, parameters and bytes, each by a count on paper."""

from __future__ import annotations

import numpy as np
import pytest
from ir_models import body, floats, if_model, node, proto, value
from onnx import NodeProto, TensorProto

from pared.compiler.ir.importer import import_model
from pared.compiler.ir.stats import Counts, count, macs_of


def counts(one: NodeProto, shape: tuple[int | str, ...], **constants: np.ndarray) -> Counts:
    return count(import_model(proto([one], [value("x", shape)], [value("y", None)], constants)).model)


@pytest.mark.parametrize(
    ("one", "shape", "constants", "macs"),
    [
        # out 4x6x6, each from 3 channels of 3x3
        (node("Conv", "x w", "y", pads=[1, 1, 1, 1]), (1, 3, 6, 6), {"w": floats(4, 3, 3, 3)}, 4 * 36 * 27),
        (
            node("Conv", "x w", "y", pads=[1, 1, 1, 1], group=4),
            (1, 4, 6, 6),
            {"w": floats(4, 1, 3, 3)},
            4 * 36 * 9,
        ),
        # each of the 3x5x5 inputs feeds 4 channels of 2x2
        (node("ConvTranspose", "x w", "y"), (1, 3, 5, 5), {"w": floats(3, 4, 2, 2)}, 75 * 16),
        (node("Gemm", "x w", "y"), (2, 5), {"w": floats(5, 3)}, 2 * 5 * 3),
        (node("Gemm", "x w", "y", transA=1, transB=1), (5, 2), {"w": floats(3, 5)}, 2 * 5 * 3),
        (node("MatMul", "x w", "y"), (7, 2, 5), {"w": floats(5, 3)}, 7 * 2 * 5 * 3),
        (node("Einsum", "x w", "y", equation="bi,io->bo"), (2, 5), {"w": floats(5, 3)}, 2 * 5 * 3),
        (node("Relu", "x", "y"), (2, 5), {}, 0),
    ],
)
def test_macs(one: NodeProto, shape: tuple[int, ...], constants: dict[str, np.ndarray], macs: int) -> None:
    assert counts(one, shape, **constants).macs == macs


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_macs(op: str, gates: int, directions: int) -> None:
    steps, batch, inputs, hidden = 7, 2, 3, 5
    attributes = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    weights = {
        "w": floats(directions, gates * hidden, inputs),
        "r": floats(directions, gates * hidden, hidden),
    }
    found = counts(node(op, "x w r", "y", **attributes), (steps, batch, inputs), **weights)
    assert found.macs == steps * batch * directions * gates * hidden * (inputs + hidden)


def test_an_unknown_batch_counts_as_one() -> None:
    assert counts(node("Gemm", "x w", "y"), ("n", 5), w=floats(5, 3)).macs == 15


def test_a_scan_counts_its_body_per_step() -> None:
    step = body(
        "s",
        [node("MatMul", "xt w", "out"), node("Identity", "st", "st2")],
        [value("st", (4,)), value("xt", (2, 4))],
        [value("st2", (4,)), value("out", (2, 3))],
    )
    model = proto(
        [node("Scan", "h x", "hn y", body=step, num_scan_inputs=1)],
        [value("h", (4,)), value("x", (6, 2, 4))],
        [value("hn", (4,)), value("y", (6, 2, 3))],
        {"w": floats(4, 3)},
    )
    assert count(import_model(model).model).macs == 6 * 2 * 4 * 3


def loop(trips: str) -> Counts:
    step = body("l", [node("MatMul", "a w", "b"), node("Identity", "c", "c2")],
                [value("i", (), TensorProto.INT64), value("c", (), TensorProto.BOOL), value("a", (2, 4))],
                [value("c2", (), TensorProto.BOOL), value("b", (2, 4))])  # fmt: skip
    constants = {"w": floats(4, 4), "t": np.array(5), "on": np.array(True)}
    inputs = [value("x", (2, 4))] + ([value("n", (), TensorProto.INT64)] if trips == "n" else [])
    model = proto([node("Loop", f"{trips} on x", "y", body=step)], inputs, [value("y", (2, 4))], constants)
    return count(import_model(model).model)


def test_a_loop_of_known_length_counts_its_body_per_trip() -> None:
    assert loop("t").macs == 5 * 2 * 4 * 4


def test_a_loop_of_unknown_length_is_reported_as_uncounted() -> None:
    found = loop("n")
    assert (found.macs, found.uncounted) == (0, 1)


def test_an_if_counts_its_dearer_branch() -> None:
    then = body("t", [node("MatMul", "x w", "yt")], [], [value("yt")])
    other = body("e", [node("Neg", "x", "ye")], [], [value("ye")])
    model = proto(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("x"), value("c", (), TensorProto.BOOL)],
        constants={"w": floats(4, 4)},
    )
    assert count(import_model(model).model).macs == 16


def test_ops_of_bodies_are_counted() -> None:
    assert count(import_model(if_model()).model).ops == {"Abs": 1, "If": 1, "Neg": 1, "Relu": 1}


def test_float_bops_are_macs_times_32_times_32() -> None:
    assert counts(node("Gemm", "x w", "y"), (1, 5), w=floats(5, 3)).bops == 15 * 1024


def test_quantized_bops_use_the_widths_of_the_quantizers() -> None:
    constants = {
        "xs": np.float32(0.1), "xz": np.uint8(3), "ws": np.float32(0.1), "w": np.ones((5, 3), np.int8),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x xs xz", "q"),
        node("DequantizeLinear", "q xs xz", "xd"),
        node("DequantizeLinear", "w ws", "wd"),
        node("MatMul", "xd wd", "y"),
    ]
    model = proto(nodes, [value("x", (1, 5))], [value("y", (1, 3))], constants)
    assert count(import_model(model).model).bops == 15 * 8 * 8


def test_parameters_leave_out_shapes() -> None:
    found = counts(node("Reshape", "x s", "y"), (2, 6), s=np.array([3, 4]))
    assert (found.parameters, found.weight_bytes) == (0, 16)


def test_parameters_and_bytes_of_weights() -> None:
    found = counts(node("Gemm", "x w", "y"), (1, 5), w=floats(5, 3))
    assert (found.parameters, found.weight_bytes) == (15, 60)


def test_macs_of_a_node_of_unknown_rank_is_none() -> None:
    model = import_model(
        proto([node("Gemm", "x w", "y")], [value("x", (1, 5))], [value("y", None)], {"w": floats(5, 3)})
    ).model
    model.graph[0].outputs[0].shape = None
    assert macs_of(model.graph[0]) is None
