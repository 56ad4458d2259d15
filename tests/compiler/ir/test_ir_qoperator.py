"""QOperator graphs become QDQ and compute the same as onnxruntime's integer kernels, up to one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from ir_models import Array, floats, node, proto, run, value
from onnx import ModelProto, NodeProto, TensorProto

from pared.compiler.errors import UnsupportedOp
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model

MICROSOFT = "com.microsoft"
U8 = TensorProto.UINT8
I8 = TensorProto.INT8

# scale and zero point of input, second operand and result
CONSTANTS: dict[str, Array] = {
    "xs": np.float32(0.02), "xz": np.uint8(120),
    "ws": np.float32(0.03), "wz": np.uint8(130),
    "ys": np.float32(0.05), "yz": np.uint8(125),
}  # fmt: skip


def data(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def model(
    one: NodeProto, shapes: Mapping[str, Sequence[int]], constants: Mapping[str, Array] | None = None
) -> ModelProto:
    inputs = [value(name, shape, U8) for name, shape in shapes.items()]
    return proto(
        [one], inputs, [value("y", None, U8)], CONSTANTS | dict(constants or {}), domains={MICROSOFT: 1}
    )


def one_step(original: ModelProto, feeds: Mapping[str, Array], *, exact: bool = False) -> list[str]:
    """Compare with onnxruntime on the original; return the operators of the rewritten graph."""
    imported = import_model(original).model
    got, want = run(to_bytes(imported), feeds)[0], run(original, feeds)[0]
    assert got.dtype == want.dtype
    assert np.ptp(want.astype(np.int32)) > 10, "the test must exercise the range"
    # The integer kernel scales in one float32 product, QDQ in two: ties may fall to either side.
    assert np.abs(got.astype(np.int32) - want.astype(np.int32)).max() <= (0 if exact else 1)
    assert not {one.domain for one in imported.graph} - {""}
    return [one.op_type for one in imported.graph]


def test_conv_per_channel_with_bias() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.array([0.002, 0.003, 0.004, 0.005], np.float32),
        "wz": np.zeros(4, np.int8),
        "b": rng.integers(-3000, 3000, 4).astype(np.int32),
    }
    one = node("QLinearConv", "x xs xz w ws wz ys yz b", "y", pads=[1, 1, 1, 1])
    ops = one_step(model(one, {"x": (1, 3, 6, 6)}, constants), {"x": data(1, 3, 6, 6)})
    assert ops == [
        "DequantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        "QuantizeLinear",
    ] or sorted(ops) == sorted(["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"])


def test_conv_without_bias() -> None:
    constants = {"w": data(4, 3, 1, 1, seed=1)}
    one = node("QLinearConv", "x xs xz w ws wz ys yz", "y")
    one_step(model(one, {"x": (1, 3, 6, 6)}, constants), {"x": data(1, 3, 6, 6)})


def test_conv_with_a_bias_and_scales_that_are_not_constant_is_refused() -> None:
    constants = {"w": data(4, 3, 1, 1), "b": np.zeros(4, np.int32)}
    one = node("QLinearConv", "x s xz w ws wz ys yz b", "y")
    inputs = [value("x", (1, 3, 6, 6), U8), value("s", ())]
    with pytest.raises(UnsupportedOp) as caught:
        import_model(proto([one], inputs, [value("y", None, U8)], CONSTANTS | constants))
    assert caught.value.reason == "qoperator"


def test_matmul() -> None:
    one = node("QLinearMatMul", "x xs xz w ws wz ys yz", "y")
    one_step(model(one, {"x": (3, 8)}, {"w": data(8, 5, seed=1)}), {"x": data(3, 8)})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(bias: bool, transposed: int) -> None:
    constants = {
        "w": data(5, 8, seed=1) if transposed else data(8, 5, seed=1),
        "b": np.arange(-1000, 1500, 500, dtype=np.int32),
    }
    one = node("QGemm", f"x xs xz w ws wz {'b' if bias else '_'} ys yz", "y", MICROSOFT, transB=transposed)
    one_step(model(one, {"x": (3, 8)}, constants), {"x": data(3, 8)})


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_per_column(transposed: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (8, 5)).astype(np.int8)
    constants = {
        "w": weight.T.copy() if transposed else weight,
        "ws": np.array([0.01, 0.02, 0.03, 0.04, 0.05], np.float32),
        "wz": np.zeros(5, np.int8),
        "b": np.arange(-1000, 1500, 500, dtype=np.int32),
    }
    one = node("QGemm", "x xs xz w ws wz b ys yz", "y", MICROSOFT, transB=transposed)
    one_step(model(one, {"x": (3, 8)}, constants), {"x": data(3, 8)})


def test_gemm_with_float_output() -> None:
    one = node("QGemm", "x xs xz w ws wz", "y", MICROSOFT)
    original = proto(
        [one],
        [value("x", (3, 8), U8)],
        [value("y", None)],
        CONSTANTS | {"w": data(8, 5, seed=1)},
        domains={MICROSOFT: 1},
    )
    feeds = {"x": data(3, 8)}
    got, want = run(to_bytes(import_model(original).model), feeds)[0], run(original, feeds)[0]
    # Eight float32 products of magnitude up to 136 * 0.02 * 130 * 0.03, summed in float32.
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * 10.7 * 8 * 1.2e-7)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_binary(op: str) -> None:
    original = model(node(op, "x xs xz w ws wz ys yz", "y", MICROSOFT), {"x": (3, 8), "w": (1, 8)})
    one_step(original, {"x": data(3, 8), "w": data(1, 8, seed=1)})


@pytest.mark.parametrize(("op", "attributes"), [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.2})])
def test_unary(op: str, attributes: dict[str, float]) -> None:
    constants = {"ys": np.float32(1 / 256), "yz": np.uint8(0)} if op == "QLinearSigmoid" else {}
    original = model(node(op, "x xs xz ys yz", "y", MICROSOFT, **attributes), {"x": (3, 80)}, constants)
    one_step(original, {"x": data(3, 80)})


@pytest.mark.parametrize("last", [0, 1])
def test_global_average_pool(last: int) -> None:
    shape = (1, 4, 4, 16) if last else (1, 16, 4, 4)
    constants = {"ys": np.float32(0.01)}
    one = node("QLinearGlobalAveragePool", "x xs xz ys yz", "y", MICROSOFT, channels_last=last)
    one_step(model(one, {"x": shape}, constants), {"x": data(*shape)})


def test_average_pool() -> None:
    one = node("QLinearAveragePool", "x xs xz ys yz", "y", MICROSOFT, kernel_shape=[2, 2], strides=[2, 2])
    one_step(model(one, {"x": (1, 3, 6, 6)}), {"x": data(1, 3, 6, 6)})


def test_concat() -> None:
    one = node("QLinearConcat", "ys yz x xs xz w ws wz", "y", MICROSOFT, axis=1)
    one_step(model(one, {"x": (3, 8), "w": (3, 2)}), {"x": data(3, 8), "w": data(3, 2, seed=1)})


def test_quantizers_of_the_microsoft_domain() -> None:
    nodes = [
        node("QuantizeLinear", "x xs xz", "q", MICROSOFT),
        node("DequantizeLinear", "q xs xz", "y", MICROSOFT),
    ]
    original = proto(nodes, [value("x", (3, 8))], [value("y", (3, 8))], CONSTANTS, domains={MICROSOFT: 1})
    imported = import_model(original).model
    x = floats(3, 8)
    np.testing.assert_array_equal(run(to_bytes(imported), {"x": x})[0], run(original, {"x": x})[0])


def test_names_of_results_stay() -> None:
    one = node("QLinearAdd", "x xs xz w ws wz ys yz", "h", MICROSOFT)
    inputs = [value("x", (3, 8), U8), value("w", (3, 8), U8)]
    original = proto(
        [one, node("Identity", "h", "y")], inputs, [value("y", (3, 8), U8)], CONSTANTS, domains={MICROSOFT: 1}
    )
    imported = import_model(original).model
    quantize = imported.graph[-1].inputs[0].producer()
    assert (quantize.op_type, quantize.outputs[0].name, quantize.name) == ("QuantizeLinear", "h", "n_h")


def test_the_microsoft_domain_is_gone() -> None:
    one = node("QLinearAdd", "x xs xz w ws wz ys yz", "y", MICROSOFT)
    imported = import_model(model(one, {"x": (3, 8), "w": (3, 8)}))
    assert MICROSOFT not in imported.model.opset_imports
    assert any("QOperator" in note for note in imported.notes)


def test_integer_convolutions_stay() -> None:
    one = node("MatMulInteger", "x w", "y")
    original = proto(
        [one], [value("x", (3, 8), U8)], [value("y", (3, 5), TensorProto.INT32)], {"w": data(8, 5)}
    )
    assert import_model(original).model.graph[0].op_type == "MatMulInteger"
