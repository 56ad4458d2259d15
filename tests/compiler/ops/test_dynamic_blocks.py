"""int8 in blocks measured at run time: the definition, its form in standard operators, its refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from pared.compiler.errors import UnsupportedOp
from pared.compiler.ops import expand_custom_ops, register
from pared.compiler.ops.dynamic_blocks import OP, dynamic_block_quantize
from pared.compiler.ort import make_session, run_session


def model(shape: list[int | str], block: int | None = 32) -> ir.Model:
    register()
    attributes = {} if block is None else {"block_size": block}
    node = helper.make_node(OP, ["x"], ["q", "s"], domain="pared.ops", **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(*port, None) for port in (("q", 3), ("s", 1))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("pared.ops", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))


def values(*shape: int) -> np.ndarray:
    """Multiples of 1/2 up to 127, so that there are ties, with blocks of zeros and of tiny numbers."""
    rng = np.random.default_rng(0)
    x = (rng.integers(-254, 255, shape) / 2).astype(np.float32)
    x[..., 0], x[..., 32:64] = 127, 0
    x[..., -32:] *= np.float32(2.0**-120)
    return x


@pytest.mark.parametrize("shape", [(2, 128), (2, 3, 96)])
def test_standard_operators_give_the_same_bits(shape):
    x, draft = values(*shape), model(["n", *shape[1:]])
    assert expand_custom_ops(draft) == 1
    assert all(not node.domain for node in draft.graph)
    got = run_session(make_session(draft), {"x": x})
    q, scale = dynamic_block_quantize(x, 32)
    np.testing.assert_array_equal(got["q"], q)
    np.testing.assert_array_equal(got["s"], scale)


def test_ties_go_to_even_and_blocks_near_zero_are_zero():
    x = np.zeros((1, 64), np.float32)
    x[0, :5], x[0, 32:] = [127, 0.5, 1.5, 2.5, -0.5], 2.0**-101
    q, scale = dynamic_block_quantize(x, 32)
    assert q[0, :5].tolist() == [127, 0, 2, 2, 0]
    assert scale[0].tolist() == [1.0, np.float32(2.0**-101) / np.float32(127)]
    assert not q[0, 32:].any()


@pytest.mark.parametrize(("block", "sizes"), [(None, (2, 4)), (64, (2, 2))])
def test_the_scales_have_one_entry_per_block(block, sizes):
    q, scale = model([2, 128], block).graph.outputs
    assert (q.shape, scale.shape) == (ir.Shape([2, 128]), ir.Shape(sizes))
    assert (q.dtype, scale.dtype) == (ir.DataType.INT8, ir.DataType.FLOAT)


@pytest.mark.parametrize("last", ["k", 48])
def test_a_last_axis_of_other_than_whole_blocks_is_refused(last):
    with pytest.raises(UnsupportedOp, match="whole blocks of 32"):
        expand_custom_ops(model([2, last]))
