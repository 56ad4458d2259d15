"""Opset upgrades compute what onnxruntime computes on the original model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from ir_models import Array, body, floats, node, proto, run, value
from onnx import ModelProto, TensorProto

from pared.compiler.errors import ModelError
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model

ANY = None


def same(model: ModelProto, feeds: Mapping[str, Array]) -> None:
    """The upgraded model is bit-equal to the original in onnxruntime, and shapes are the declared ones."""
    imported = import_model(model).model
    assert imported.opset_imports[""] == 21
    got = run(to_bytes(imported), feeds)
    for mine, want in zip(got, run(model, feeds), strict=True):
        np.testing.assert_array_equal(mine, want)


def unary(op: str, shape: tuple[int, ...], opset: int, **attributes: object) -> None:
    model = proto([node(op, "x", "y", **attributes)], [value("x", shape)], [value("y", ANY)], opset=opset)
    same(model, {"x": floats(*shape)})


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (2, 3, 1, 1)])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [7, 11, 12])
def test_softmax_over_flattened_axes(op: str, shape: tuple[int, ...], axis: int, opset: int) -> None:
    if axis < 0 and opset < 11:
        pytest.skip("negative axes came with opset 11")
    unary(op, shape, opset, axis=axis)


def test_softmax_with_the_old_default_axis() -> None:
    unary("Softmax", (2, 3, 4), 9)


def test_softmax_of_opset_13_is_left_alone() -> None:
    imported = import_model(proto([node("Softmax", "x", "y", axis=0)], opset=13)).model
    assert [one.op_type for one in imported.graph] == ["Softmax"]


def test_softmax_on_the_last_axis_needs_no_reshape() -> None:
    imported = import_model(proto([node("Softmax", "x", "y", axis=1)], opset=9)).model
    assert [one.op_type for one in imported.graph] == ["Softmax"]


def test_a_reshaped_softmax_keeps_the_name_of_its_output() -> None:
    model = proto([node("Softmax", "x", "h", axis=0), node("Relu", "h", "y")], opset=9)
    made = import_model(model).model.graph[-1].inputs[0]
    assert (made.name, made.producer().op_type) == ("h", "Reshape")


@pytest.mark.parametrize("bounds", [{}, {"min": -0.25}, {"max": 0.5}, {"min": -0.25, "max": 0.5}])
def test_clip_bounds_become_inputs(bounds: dict[str, float]) -> None:
    unary("Clip", (3, 4), 7, **bounds)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad(mode: str) -> None:
    unary("Pad", (3, 4), 7, pads=[1, 0, 0, 2], mode=mode, value=0.75)


def test_slice() -> None:
    unary("Slice", (3, 4), 7, starts=[0, 1], ends=[2, -1], axes=[0, 1])


def test_slice_without_axes() -> None:
    unary("Slice", (3, 4), 7, starts=[1, 1], ends=[9, 3])


@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceProd"]
)
@pytest.mark.parametrize("attributes", [{}, {"axes": [1]}, {"axes": [0, 2], "keepdims": 0}])
def test_reductions(op: str, attributes: dict[str, object]) -> None:
    unary(op, (2, 3, 4), 11, **attributes)


def test_squeeze_and_unsqueeze() -> None:
    nodes = [node("Unsqueeze", "x", "u", axes=[0, 2]), node("Squeeze", "u", "y", axes=[2])]
    same(proto(nodes, [value("x", (3, 4))], [value("y", ANY)], opset=11), {"x": floats(3, 4)})


def test_squeeze_of_everything() -> None:
    unary("Squeeze", (1, 4, 1), 11)


@pytest.mark.parametrize("opset", [7, 12, 13])
def test_split_in_equal_parts(opset: int) -> None:
    model = proto(
        [node("Split", "x", "y z", axis=1)],
        [value("x", (2, 4))],
        [value("y", ANY), value("z", ANY)],
        opset=opset,
    )
    same(model, {"x": floats(2, 4)})


def test_split_in_given_parts() -> None:
    model = proto(
        [node("Split", "x", "y z", axis=1, split=[1, 3])],
        [value("x", (2, 4))],
        [value("y", ANY), value("z", ANY)],
        opset=11,
    )
    same(model, {"x": floats(2, 4)})


def test_topk() -> None:
    outputs = [value("y", ANY), value("i", ANY, TensorProto.INT64)]
    same(
        proto([node("TopK", "x", "y i", k=2, axis=1)], [value("x", (3, 5))], outputs, opset=9),
        {"x": floats(3, 5)},
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("scales", [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.5, 3.0]])
def test_upsample(mode: str, opset: int, scales: list[float]) -> None:
    if opset == 7:
        made, constants = node("Upsample", "x", "y", mode=mode, scales=scales), {}
    else:
        made, constants = node("Upsample", "x s", "y", mode=mode), {"s": np.array(scales, np.float32)}
    model = proto([made], [value("x", (1, 2, 3, 5))], [value("y", ANY)], constants, opset=opset)
    same(model, {"x": floats(1, 2, 3, 5)})


def test_upsample_by_scales_that_are_not_constant() -> None:
    inputs = [value("x", (1, 2, 3, 5)), value("s", (4,))]
    model = proto([node("Upsample", "x s", "y")], inputs, [value("y", ANY)], opset=9)
    same(model, {"x": floats(1, 2, 3, 5), "s": np.array([1, 1, 1.5, 3], np.float32)})


def test_resize_10_by_scales_that_are_not_constant_is_refused() -> None:
    inputs = [value("x", (1, 2, 3, 5)), value("s", (4,))]
    with pytest.raises(ModelError) as caught:
        import_model(proto([node("Resize", "x s", "y")], inputs, [value("y", ANY)], opset=10))
    assert caught.value.reason == "opset-upgrade"


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 1.3, 0.6, 0.5])
def test_resize_10(mode: str, scale: float) -> None:
    constants = {"s": np.array([1, 1, scale, scale], np.float32)}
    model = proto(
        [node("Resize", "x s", "y", mode=mode)],
        [value("x", (1, 2, 5, 7))],
        [value("y", ANY)],
        constants,
        opset=10,
    )
    same(model, {"x": floats(1, 2, 5, 7)})


@pytest.mark.parametrize(
    ("coordinates", "nearest"),
    [
        ("tf_half_pixel_for_nn", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("asymmetric", "floor"),
        ("align_corners", "round_prefer_floor"),
    ],
)
@pytest.mark.parametrize("scale", [2.0, 3.0, 0.5])
def test_resize_11(coordinates: str, nearest: str, scale: float) -> None:
    constants = {"r": np.zeros(0, np.float32), "s": np.array([1, 1, scale, scale], np.float32)}
    made = node("Resize", "x r s", "y", coordinate_transformation_mode=coordinates, nearest_mode=nearest)
    model = proto([made], [value("x", (1, 2, 4, 6))], [value("y", ANY)], constants, opset=11)
    same(model, {"x": floats(1, 2, 4, 6)})


def test_resize_11_by_sizes() -> None:
    constants = {"r": np.zeros(0, np.float32), "s": np.zeros(0, np.float32), "z": np.array([1, 2, 8, 9])}
    made = node("Resize", "x r s z", "y", mode="linear")
    model = proto([made], [value("x", (1, 2, 4, 6))], [value("y", ANY)], constants, opset=11)
    same(model, {"x": floats(1, 2, 4, 6)})


def test_batchnorm_of_opset_7_with_training_outputs_unread() -> None:
    rng = np.random.default_rng(0)
    constants = {name: rng.random(3, np.float32) + 0.5 for name in "sbmv"}
    made = node("BatchNormalization", "x s b m v", "y m2 v2 m3 v3", spatial=1)
    model = proto([made], [value("x", (2, 3, 4, 4))], [value("y", (2, 3, 4, 4))], constants, opset=7)
    assert len(import_model(model).model.graph[0].outputs) == 1


@pytest.mark.parametrize("opset", [7, 9])
def test_batchnorm(opset: int) -> None:
    rng = np.random.default_rng(0)
    constants = {name: rng.random(3, np.float32) + 0.5 for name in "sbmv"}
    model = proto(
        [node("BatchNormalization", "x s b m v", "y")],
        [value("x", (2, 3, 4, 4))],
        [value("y", ANY)],
        constants,
        opset=opset,
    )
    same(model, {"x": floats(2, 3, 4, 4)})


def test_batchnorm_per_element_is_refused() -> None:
    constants = {name: np.ones((3, 4, 4), np.float32) for name in "sbmv"}
    made = node("BatchNormalization", "x s b m v", "y", spatial=0)
    with pytest.raises(ModelError, match="spatial=0") as caught:
        import_model(proto([made], [value("x", (2, 3, 4, 4))], [value("y", ANY)], constants, opset=7))
    assert caught.value.reason == "opset-upgrade"


@pytest.mark.parametrize("opset", [7, 10])
def test_dropout_is_the_identity(opset: int) -> None:
    unary("Dropout", (3, 4), opset, ratio=0.3)


def test_scatter() -> None:
    inputs = [value("x", (3, 3)), value("i", (1, 2), TensorProto.INT64), value("u", (1, 2))]
    model = proto([node("Scatter", "x i u", "y", axis=1)], inputs, [value("y", (3, 3))], opset=9)
    same(model, {"x": floats(3, 3), "i": np.array([[2, 0]]), "u": floats(1, 2, seed=1)})


def test_grid_sample() -> None:
    inputs = [value("x", (1, 2, 4, 4)), value("g", (1, 3, 3, 2))]
    model = proto([node("GridSample", "x g", "y", mode="bilinear")], inputs, [value("y", ANY)], opset=16)
    same(model, {"x": floats(1, 2, 4, 4), "g": np.clip(floats(1, 3, 3, 2, seed=1), -1, 1)})


def test_roi_align() -> None:
    inputs = [value("x", (1, 2, 8, 8)), value("r", (2, 4)), value("b", (2,), TensorProto.INT64)]
    made = node("RoiAlign", "x r b", "y", output_height=2, output_width=2, sampling_ratio=2)
    model = proto([made], inputs, [value("y", ANY)], opset=10)
    rois = np.array([[0, 0, 4, 4], [1, 2, 6, 7]], np.float32)
    same(model, {"x": floats(1, 2, 8, 8), "r": rois, "b": np.array([0, 0])})


def test_dft() -> None:
    model = proto([node("DFT", "x", "y")], [value("x", (1, 8, 1))], [value("y", ANY)], opset=17)
    same(model, {"x": floats(1, 8, 1)})


def test_dft_keeps_its_old_default_axis() -> None:
    model = proto([node("DFT", "x", "y")], [value("x", (1, 4, 6, 1))], [value("y", ANY)], opset=17)
    same(model, {"x": floats(1, 4, 6, 1)})


def test_group_normalization_takes_scales_per_channel() -> None:
    constants = {"s": np.array([2, 3], np.float32), "b": np.array([0.5, -1], np.float32)}
    made = node("GroupNormalization", "x s b", "y", num_groups=2)
    model = proto([made], [value("x", (1, 4, 3))], [value("y", (1, 4, 3))], constants, opset=18)
    x = floats(1, 4, 3)
    grouped = x.reshape(1, 2, 6).astype(np.float64)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    want = (normal * constants["s"][:, None] + constants["b"][:, None]).reshape(1, 4, 3)
    # Six terms of order 1 in float32, scaled by at most 3.
    np.testing.assert_allclose(
        run(to_bytes(import_model(model).model), {"x": x})[0], want, rtol=0, atol=3 * 6 * 1.2e-7 * 4
    )


def test_nodes_in_bodies_are_upgraded() -> None:
    then = body(
        "t", [node("Unsqueeze", "x", "u", axes=[0]), node("Squeeze", "u", "yt", axes=[0])], [], [value("yt")]
    )
    other = body("e", [node("Clip", "x", "ye", min=0.0)], [], [value("ye")])
    model = proto(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("x"), value("c", (), TensorProto.BOOL)],
        opset=9,
    )
    for flag in (True, False):
        same(model, {"x": floats(1, 4), "c": np.array(flag)})


def test_a_scan_of_opset_8_is_refused() -> None:
    step = body("s", [node("Identity", "a", "b")], [value("a", (4,))], [value("b", (4,))])
    model = proto(
        [node("Scan", "_ x", "y", body=step, num_scan_inputs=1)],
        [value("x", (1, 3, 4))],
        [value("y", (1, 3, 4))],
        opset=8,
    )
    with pytest.raises(ModelError) as caught:
        import_model(model)
    assert caught.value.reason in {"opset-upgrade", "shape-inference"}


def test_weights_are_not_copied_by_the_upgrade() -> None:
    import onnx_ir as ir

    weight = ir.tensor(floats(4, 4), name="w")
    model = ir.serde.deserialize_model(
        proto([node("MatMul", "x w", "h"), node("Softmax", "h", "y")], constants={"w": floats(4, 4)}, opset=9)
    )
    model.graph.initializers["w"].const_value = weight
    got = import_model(model).model.graph.initializers["w"].const_value
    assert np.shares_memory(got.numpy(), weight.numpy())


def test_an_opset_above_21_stays() -> None:
    assert (
        import_model(proto([node("Relu", "x", "y")], opset=23, ir_version=11)).model.opset_imports[""] == 23
    )
