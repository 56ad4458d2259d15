"""onnxruntime's MatMulNBits is imported as a product with dequantized block weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pared.backends.reference import evaluate
from pared.compiler.errors import UnsupportedOp
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.quant import view

DEPTH, OUTPUTS = 96, 24


def _model(bits: int, block: int, **options: object) -> onnx.ModelProto:
    rng = np.random.default_rng(bits)
    blocks = DEPTH // block
    arrays = {
        "B": rng.integers(0, 256, (OUTPUTS, blocks, block * bits // 8)).astype(np.uint8),
        "s": (0.01 + rng.random(OUTPUTS * blocks)).astype(np.float32),
    }
    names = ["x", "B", "s"]
    if options.pop("zeros", False):
        arrays["z"] = rng.integers(0, 256, OUTPUTS * -(-blocks * bits // 8)).astype(np.uint8)
        names.append("z")
    if options.pop("groups", False):
        arrays["g"] = np.arange(DEPTH, dtype=np.int32)
        names = [*names, *[""] * (4 - len(names)), "g"]
    if options.pop("bias", False):
        arrays["b"] = rng.standard_normal(OUTPUTS).astype(np.float32)
        names = [*names, *[""] * (5 - len(names)), "b"]
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", name="product")
    sizes = {"K": DEPTH, "N": OUTPUTS, "bits": bits, "block_size": block, **options}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sizes.items())
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("bits", "block", "options"),
    [(4, 32, {}), (4, 16, {"zeros": True}), (8, 32, {"zeros": True}), (4, 32, {"bias": True}), (2, 32, {})],
)
def test_the_imported_product_is_that_of_onnxruntime(
    bits: int, block: int, options: dict[str, object]
) -> None:
    proto = _model(bits, block, **options)
    x = np.random.default_rng(1).standard_normal((2, DEPTH)).astype(np.float32)
    (want,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    got = evaluate(import_model(proto).model, {"x": x})["y"]
    # 96 products of magnitudes below 4 * 128: float32 rounds each a few times.
    np.testing.assert_allclose(got, want, atol=96 * 512 * 2.0**-22)


def test_the_weights_are_read_as_blocks() -> None:
    model = import_model(_model(4, 32)).model
    product = next(node for node in model.graph if node.op_type == "MatMul")
    params = view(product.inputs[1])
    assert params is not None
    assert (params.spec.bits, params.spec.axis, params.spec.block_size) == (4, 0, 32)
    assert product.name == "product"
    assert "B" not in model.graph.initializers


@pytest.mark.parametrize(
    ("options", "reason"), [({"groups": True}, "g_idx"), ({"weight_prepacked": 1}, "packed")]
)
def test_what_blocks_cannot_say_is_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedOp, match=reason) as refusal:
        import_model(_model(4, 32, **options))
    assert refusal.value.reason == "matmul-nbits"
