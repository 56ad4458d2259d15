"""Each invariant of the IR: its violation is found, and what is nearly a violation passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from ir_models import floats, if_model, node, proto, value

from pared.compiler.errors import InvalidGraph
from pared.compiler.ir import walk
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.verifier import verify_graph


def chain() -> ir.Model:
    """x -> Add(w) = a -> Relu = y."""
    nodes = [node("Add", "x w", "a"), node("Relu", "a", "y")]
    return import_model(proto(nodes, constants={"w": floats(4)})).model


def reason(model: ir.Model, *, full: bool = False) -> str:
    with pytest.raises(InvalidGraph) as caught:
        verify_graph(model, full=full)
    return caught.value.reason


def test_an_imported_model_passes() -> None:
    verify_graph(chain())


# --- names ------------------------------------------------------------------------------------------


def test_two_values_of_one_name() -> None:
    model = chain()
    model.graph[0].outputs[0].name = "x"
    assert reason(model) == "ir-name"


def test_a_value_in_a_body_with_the_name_of_an_outer_one() -> None:
    model = import_model(if_model()).model
    next(model.graph.subgraphs())[0].outputs[0].name = "h"
    assert reason(model) == "ir-name"


def test_two_nodes_of_one_name() -> None:
    model = chain()
    model.graph[0].name = model.graph[1].name
    assert reason(model) == "ir-name"


def test_a_node_without_name() -> None:
    model = chain()
    model.graph[0].name = None
    assert reason(model) == "ir-name"


def test_a_used_value_without_name() -> None:
    model = chain()
    model.graph[0].outputs[0].name = None
    assert reason(model) == "ir-name"


def test_a_left_out_output_needs_no_name() -> None:
    nodes = [node("Dropout", "x", "y")]
    model = import_model(proto(nodes)).model
    model.graph[0].resize_outputs(2)
    verify_graph(model)


def test_an_output_listed_twice() -> None:
    model = chain()
    model.graph.outputs.append(model.graph.outputs[0])
    assert reason(model) == "ir-name"


# --- scope and order --------------------------------------------------------------------------------


def test_nodes_out_of_order() -> None:
    model = chain()
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    assert reason(model) == "ir-order"


def test_a_value_that_nothing_defines() -> None:
    model = chain()
    ghost = ir.Value(name="ghost", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4]))
    model.graph[0].replace_input_with(1, ghost)
    assert reason(model) == "ir-scope"


def test_a_value_of_a_body_read_outside() -> None:
    model = import_model(if_model()).model
    inner = next(model.graph.subgraphs())[0].outputs[0]
    after = ir.node("Neg", [inner], name="after")
    model.graph.append(after)
    assert reason(model) in {"ir-order", "ir-scope"}


def test_a_value_of_a_sibling_body() -> None:
    model = import_model(if_model()).model
    first, second = model.graph.subgraphs()
    second[0].replace_input_with(0, first[0].outputs[0])
    assert reason(model) in {"ir-order", "ir-scope"}


def test_an_outer_value_read_in_a_body_passes() -> None:
    verify_graph(import_model(if_model()).model)


def test_an_outer_value_that_is_defined_after_the_body() -> None:
    model = import_model(if_model()).model
    relu = model.graph[0]
    model.graph.remove(relu)
    model.graph.append(relu)
    assert reason(model) == "ir-order"


def test_a_removed_constant_that_is_still_read() -> None:
    model = chain()
    model.graph.initializers.pop("w")
    assert reason(model) == "ir-scope"


def test_a_removed_node_whose_output_is_still_read() -> None:
    model = chain()
    model.graph.remove(model.graph[0])
    assert reason(model) == "ir-scope"


def test_a_graph_output_that_nothing_makes() -> None:
    model = chain()
    model.graph.outputs[0] = ir.Value(name="z", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4]))
    assert reason(model) == "ir-scope"


# --- links ------------------------------------------------------------------------------------------


def test_a_reader_outside_the_graph() -> None:
    model = chain()
    ir.node("Neg", [model.graph[0].outputs[0]], name="stray")
    assert reason(model) == "ir-use-def"


def test_a_forgotten_use() -> None:
    model = chain()
    used, reader = model.graph[0].outputs[0], model.graph[1]
    used._remove_usage(reader, 0)
    assert reason(model) == "ir-use-def"


def test_a_use_that_is_none() -> None:
    model = chain()
    model.graph.inputs[0]._add_usage(model.graph[1], 0)
    assert reason(model) == "ir-use-def"


# --- types and constants ----------------------------------------------------------------------------


def test_a_value_without_type() -> None:
    model = chain()
    model.graph[0].outputs[0].type = None
    assert reason(model) == "ir-type"


def test_int8_data_behind_a_float_value() -> None:
    # onnx's full checker lets this pass once the tensor is large.
    model = chain()
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(walk.read_only(np.zeros(4096, np.int8)), name="w")
    weight.shape = ir.Shape([4096])
    assert reason(model) == "ir-constant"


def test_a_constant_of_another_shape() -> None:
    model = chain()
    model.graph.initializers["w"].const_value = ir.tensor(walk.read_only(floats(5)), name="w")
    assert reason(model) == "ir-constant"


def test_a_constant_that_can_be_written_to() -> None:
    model = chain()
    model.graph.initializers["w"].const_value = ir.Tensor(floats(4), name="w")
    assert reason(model) == "ir-constant"


def test_an_initializer_without_data() -> None:
    model = chain()
    model.graph.initializers["w"].const_value = None
    assert reason(model) == "ir-constant"


def test_a_constant_that_is_an_input_too() -> None:
    model = chain()
    model.graph.inputs.append(model.graph.initializers["w"])
    assert reason(model) == "ir-constant"


def test_a_constant_node_that_says_another_type() -> None:
    made = node("Constant", "", "c", value_floats=[1.0, 2.0, 3.0, 4.0])
    model = import_model(proto([made, node("Add", "x c", "y")])).model
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.INT64)
    assert reason(model) == "ir-constant"


# --- schemas ----------------------------------------------------------------------------------------


def change_node(change: Callable[[ir.Node], None]) -> ir.Model:
    model = chain()
    change(model.graph[1])
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda n: setattr(n, "op_type", "Reluu"),
        lambda n: setattr(n, "domain", "com.example"),
        lambda n: n.attributes.add(ir.AttrInt64("axis", 1)),
        lambda n: n.resize_inputs(0),
        lambda n: n.resize_inputs(3),
        lambda n: n.replace_input_with(0, None),
        lambda n: n.resize_outputs(2),
    ],
)
def test_a_node_that_does_not_fit_its_schema(change: Callable[[ir.Node], None]) -> None:
    assert reason(change_node(change)) == "ir-schema"


def test_a_required_attribute_that_is_missing() -> None:
    model = import_model(proto([node("Concat", "x x", "y", axis=0)], outputs=[value("y", (2, 4))])).model
    del model.graph[0].attributes["axis"]
    assert reason(model) == "ir-schema"


def test_an_attribute_of_another_type() -> None:
    model = import_model(proto([node("Concat", "x x", "y", axis=0)], outputs=[value("y", (2, 4))])).model
    model.graph[0].attributes.add(ir.AttrFloat32("axis", 0.0))
    assert reason(model) == "ir-schema"


def test_an_op_of_a_domain_that_is_not_imported() -> None:
    model = chain()
    model.graph[1].domain = "ai.onnx.ml"
    model.graph[1].op_type = "Scaler"
    assert reason(model) == "ir-schema"


def test_a_reference_attribute_outside_a_function() -> None:
    model = import_model(proto([node("Concat", "x x", "y", axis=0)], outputs=[value("y", (2, 4))])).model
    model.graph[0].attributes.add(ir.RefAttr("axis", "outer", ir.AttributeType.INT))
    assert reason(model) == "ir-schema"


def test_the_full_check_finds_types_that_do_not_fit() -> None:
    model = chain()
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.INT32)
    verify_graph(model, full=False)
    assert reason(model, full=True) == "ir-checker"


def test_the_full_check_finds_sizes_that_do_not_fit() -> None:
    model = chain()
    model.graph.inputs[0].shape = ir.Shape([1, 5])
    assert reason(model, full=True) == "ir-checker"


# --- quantizers -------------------------------------------------------------------------------------


def quantized(
    scale: object = np.float32(0.5),
    zero: object = np.int8(0),
    shape: tuple[int, ...] = (2, 3, 4),
    **attributes: int,
) -> ir.Model:
    """x -> QuantizeLinear -> DequantizeLinear -> y; the parameters are set after the import."""
    constants = {"s": np.float32(0.5), "z": np.int8(0)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    model = import_model(
        proto(nodes, [value("x", shape)], [value("y", shape)], constants, opset=21, ir_version=10)
    ).model
    for name, array in (("s", scale), ("z", zero)):
        tensor = ir.tensor(walk.read_only(np.asarray(array)), name=name)
        constant = model.graph.initializers[name]
        constant.const_value, constant.type, constant.shape = (
            tensor,
            ir.TensorType(tensor.dtype),
            ir.Shape(tensor.shape.numpy()),
        )
    for one in model.graph:
        for key, number in attributes.items():
            one.attributes.add(ir.AttrInt64(key, number))
    return model


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_not_positive_and_finite(scale: float) -> None:
    assert reason(quantized(np.float32(scale))) == "ir-quant"


def test_one_bad_scale_among_good_ones() -> None:
    scales = np.array([0.5, 0.0, 0.5], np.float32)
    assert reason(quantized(scales, np.zeros(3, np.int8), axis=1)) == "ir-quant"


@pytest.mark.parametrize("axis", [-4, 3, 7])
def test_an_axis_out_of_range(axis: int) -> None:
    assert reason(quantized(np.full(3, 0.5, np.float32), np.zeros(3, np.int8), axis=axis)) == "ir-quant"


@pytest.mark.parametrize("axis", [1, -2])
def test_an_axis_in_range_passes(axis: int) -> None:
    verify_graph(quantized(np.full(3, 0.5, np.float32), np.zeros(3, np.int8), axis=axis))


def test_scales_for_another_number_of_channels() -> None:
    assert reason(quantized(np.full(2, 0.5, np.float32), np.zeros(2, np.int8), axis=1)) == "ir-quant"


def test_a_zero_point_of_another_shape() -> None:
    assert reason(quantized(np.full(3, 0.5, np.float32), np.int8(0), axis=1)) == "ir-quant"


def test_a_zero_point_of_another_type() -> None:
    assert reason(quantized(np.float32(0.5), np.uint8(0))) == "ir-quant"


def test_one_scale_in_a_list_passes() -> None:
    verify_graph(quantized(np.full(1, 0.5, np.float32), np.zeros(1, np.int8)))


def test_a_scalar_scale_with_a_zero_point_in_a_list_passes() -> None:
    verify_graph(quantized(np.float32(0.5), np.zeros(1, np.int8)))


def test_blocks_pass() -> None:
    scales = np.full((2, 3, 2), 0.5, np.float32)
    verify_graph(quantized(scales, np.zeros((2, 3, 2), np.int8), axis=2, block_size=2))


def test_blocks_of_another_count() -> None:
    scales = np.full((2, 3, 3), 0.5, np.float32)
    assert reason(quantized(scales, np.zeros((2, 3, 3), np.int8), axis=2, block_size=2)) == "ir-quant"


def quant(**constants: object) -> ir.Model:
    arrays = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(4)} | constants
    made = node(
        "Quant", "x s z b", "y", domain="qonnx.custom_op.general", signed=1, narrow=0, rounding_mode="ROUND"
    )
    model = proto(
        [made],
        [value("x", (1, 3, 2))],
        [value("y", (1, 3, 2))],
        arrays,
        domains={"qonnx.custom_op.general": 1},
    )
    return import_model(model).model


def test_a_qonnx_quantizer_passes() -> None:
    quant()


def test_a_qonnx_quantizer_per_channel_passes() -> None:
    quant(s=np.full((1, 3, 1), 0.5, np.float32))


@pytest.mark.parametrize(
    "constants",
    [
        {"s": np.float32(0)},
        {"s": np.float32(-1)},
        {"s": np.float32("nan")},
        {"b": np.float32(0)},
        {"b": np.float32(64)},
        {"s": np.ones((1, 5, 1), np.float32)},
        {"z": np.zeros((1, 5, 1), np.float32)},
        {"s": np.ones((2, 1, 3, 1), np.float32)},
    ],
)
def test_a_qonnx_quantizer_that_is_malformed(constants: dict[str, np.ndarray]) -> None:
    with pytest.raises(InvalidGraph) as caught:
        quant(**constants)
    assert caught.value.reason == "ir-quant"


def thresholds(shape: tuple[int, ...]) -> ir.Model:
    made = node("MultiThreshold", "x t", "y", domain="finn.custom_op.general", out_dtype="UINT2")
    model = proto(
        [made], [value("x", (1, 3, 2, 2))], [value("y", (1, 3, 2, 2))], {"t": np.sort(floats(*shape))},
        domains={"finn.custom_op.general": 1},
    )  # fmt: skip
    return import_model(model).model


@pytest.mark.parametrize("shape", [(3, 3), (1, 3)])
def test_thresholds_per_channel_or_for_all_pass(shape: tuple[int, ...]) -> None:
    thresholds(shape)


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_thresholds_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidGraph) as caught:
        thresholds(shape)
    assert caught.value.reason == "ir-quant"


# --- cost -------------------------------------------------------------------------------------------


class _Untouchable(ir.ExternalTensor):
    """An external tensor that must not be read."""

    def numpy(self) -> np.ndarray:
        raise AssertionError("the verifier read a weight")

    tobytes = numpy


def test_the_verifier_does_not_read_weights() -> None:
    model = chain()
    weight = model.graph.initializers["w"]
    size = [1 << 28, 4]
    weight.const_value = _Untouchable(
        "none.bin", 0, 1 << 32, ir.DataType.FLOAT, shape=ir.Shape(size), name="w"
    )
    weight.shape = ir.Shape(size)
    for one in model.graph:
        one.outputs[0].shape = ir.Shape(size)
    verify_graph(model)


def test_ten_thousand_nodes_need_a_bounded_number_of_steps() -> None:
    import sys

    def steps(count: int) -> int:
        nodes = [node("Relu", "x" if i == 0 else f"v{i}", f"v{i + 1}") for i in range(count)]
        model = import_model(proto([*nodes, node("Neg", f"v{count}", "y")])).model
        calls = 0

        def tick(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(tick)
        try:
            verify_graph(model)
        finally:
            sys.setprofile(None)
        return calls

    small, large = steps(100), steps(1000)
    assert large < 10.5 * small


def test_a_tensor_type_that_is_wrong_in_a_body_is_found() -> None:
    model = import_model(if_model()).model
    next(model.graph.subgraphs())[0].attributes.add(ir.AttrInt64("bogus", 1))
    assert reason(model) == "ir-schema"
