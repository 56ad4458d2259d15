"""The whole macro: random graphs, real models, big graphs."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from canon import assert_exact, feeds_for, graph, ops, outputs, rand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pared.backends.reference.bound import derive_bound
from pared.compiler.ir.importer import import_model
from pared.compiler.manager import Manager
from pared.compiler.ops import expand_custom_ops
from pared.compiler.pass_api import Context
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES


def canonicalize(model: ir.Model, macro: str = "canonicalize") -> ir.Model:
    return Manager(verify_each=True).run(model, parse_pipeline(macro, PASSES, MACROS), Context()).model


# --- random graphs ----------------------------------------------------------------------------------

# name -> (op type, attributes, constant operand or None); every step keeps the shape [2, 3, 8, 8].
_ROWS = (3, 1, 1)
STEPS = {
    "relu": ("Relu", {}, None),
    "identity": ("Identity", {}, None),
    "neg": ("Neg", {}, None),
    "clip": ("Clip", {}, None),
    "cast": ("Cast", {"to": 1}, None),
    "dropout": ("Dropout", {}, None),
    "transpose": ("Transpose", {"perm": [0, 1, 3, 2]}, None),
    "mul": ("Mul", {}, ("k", _ROWS)),
    "add": ("Add", {}, ("k", _ROWS)),
    "sub": ("Sub", {}, ("k", (1,))),
    "div": ("Div", {}, ("p", _ROWS)),
    "mul1": ("Mul", {}, ("one", (1,))),
    "rank": ("Add", {}, ("k", (2, 3, 8, 8))),
    "conv3": ("Conv", {"pads": [1, 1, 1, 1]}, ("k", (3, 3, 3, 3))),
    "conv1": ("Conv", {}, ("k", (3, 3, 1, 1))),
    "depthwise": ("Conv", {"group": 3, "pads": [1, 1, 1, 1]}, ("k", (3, 1, 3, 3))),
    "transposed": ("ConvTranspose", {}, ("k", (3, 3, 1, 1))),
    "norm": ("BatchNormalization", {}, ("norm", (3,))),
    "matmul": ("MatMul", {}, ("k", (8, 8))),
    "residual": ("Add", {}, None),
}


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a chain of shape-keeping steps with residual additions, shared weights and extra outputs."""
    nodes, weights, values = [], {}, ["x"]
    for index, step in enumerate(draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=12))):
        op, attributes, operand = STEPS[step]
        name = f"v{index}"
        inputs = [values[-1]]
        if step == "residual":
            inputs.append(draw(st.sampled_from(values)))
        elif operand is not None:
            inputs += _constants(weights, *operand, draw(st.integers(0, 2)))
        nodes.append(helper.make_node(op, inputs, [name], name=f"n{index}", **attributes))
        values.append(name)
    shape = [2, 3, 8, 8]
    wanted = sorted({values[-1], draw(st.sampled_from(values[1:]))})
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in wanted]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    body = helper.make_graph(nodes, "g", [source], results, constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _constants(weights: dict[str, np.ndarray], kind: str, shape: tuple[int, ...], seed: int) -> list[str]:
    """Name constants by what they are, so that steps share them."""
    if kind == "norm":
        drawn_as = (("p", seed), ("k", seed), ("k", seed + 1), ("p", seed + 1))
        return [name for k, number in drawn_as for name in _constants(weights, k, shape, number)]
    name = f"{kind}{seed}_{'x'.join(map(str, shape))}"
    drawn = rand(*shape, seed=seed)
    weights[name] = {"k": drawn, "p": np.abs(drawn) + np.float32(0.5), "one": np.ones(shape, np.float32)}[
        kind
    ]
    return [name]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks_keep_their_outputs(proto: onnx.ModelProto) -> None:
    before = import_model(proto).model
    after = canonicalize(before)
    feeds = feeds_for(before)
    # Rounding grows with what flows through the network: the bound is taken from the network itself,
    # evaluated in float64 beside float32. A wrong fold is off by a share of the values, not of eps.
    for want, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_allclose(
            got, want, rtol=0, atol=2000 * np.finfo(np.float32).eps * magnitude(proto, feeds)
        )


def magnitude(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Return the greatest value that any node makes, at least 1."""
    every = onnx.ModelProto()
    every.CopyFrom(proto)
    known = {value.name for value in every.graph.output}
    names = [name for node in every.graph.node for name in node.output if name not in known]
    every.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    return max(1.0, *(float(np.abs(a).max()) for a in outputs(import_model(every).model, feeds)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_the_exact_macro_is_exact_on_random_networks(proto: onnx.ModelProto) -> None:
    before = import_model(proto).model
    assert_exact(before, canonicalize(before, "canonicalize-exact"))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_a_second_run_finds_little_and_a_third_nothing(proto: onnx.ModelProto) -> None:
    settled = canonicalize(canonicalize(import_model(proto).model))
    assert ops(canonicalize(settled)) == ops(settled)


# --- what exporters write ---------------------------------------------------------------------------


def test_the_padding_shortcut_of_a_cifar_resnet_collapses_to_slice_and_pad() -> None:
    before = graph(
        """g (float[1,16,8,8] x) => (float[1,32,4,4] y) {
            a = Slice(x, zero, far, axis2, two)
            b = Slice(a, zero, far, axis3, two)
            z = ConstantOfShape<value = int64[1] {0}>(six)
            c = Concat<axis = 0>(given, z)
            d = Reshape(c, pairs)
            e = Slice(d, minus1, least, zero, minus1)
            f = Transpose<perm = [1,0]>(e)
            h = Reshape(f, flat)
            p = Cast<to = 7>(h)
            y = Pad(b, p)
        }""",
        zero=np.array([0]), far=np.array([2**62]), axis2=np.array([2]), axis3=np.array([3]),
        two=np.array([2]), six=np.array([2]), given=np.array([0, 0, 0, 0, 8, 8]), pairs=np.array([-1, 2]),
        minus1=np.array([-1]), least=np.array([-(2**62)]), flat=np.array([-1]),
    )  # fmt: skip
    after = canonicalize(before)
    assert ops(after) == ["Slice", "Pad"]
    assert_exact(before, after)


def test_conv_norm_scale_shift_relu_is_conv_and_relu() -> None:
    before = graph(
        """g (float[1,3,8,8] x) => (float[1,3,8,8] y) {
            a = Pad(x, p)
            b = Conv(a, w)
            c = BatchNormalization(b, s, t, t, s)
            d = Mul(c, k)
            e = Add(d, t3)
            f = Dropout(e)
            y = Relu(f)
        }""",
        p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=rand(3, 3, 3, 3), s=np.abs(rand(3)) + np.float32(0.5),
        t=rand(3), k=rand(3, 1, 1), t3=rand(3, 1, 1, seed=5),
    )  # fmt: skip
    assert ops(canonicalize(before)) == ["Conv", "Relu"]


@pytest.mark.parametrize("opset", [7, 9, 13, 17, 21, 24])
def test_models_of_any_opset_are_folded(opset: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "p", "k", "k", "p"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Add", ["c", "k3"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    weights = {
        "w": rand(3, 3, 1, 1),
        "p": np.abs(rand(3)) + np.float32(0.5),
        "k": rand(3),
        "k3": rand(3, 1, 1),
    }
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy"]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    body = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    assert ops(canonicalize(import_model(proto).model)) == ["Conv", "Relu"]


# --- size -------------------------------------------------------------------------------------------


def chain(blocks: int) -> onnx.ModelProto:
    """Conv, norm, dropout, relu and shape arithmetic, five nodes a block."""
    nodes = [helper.make_node("Identity", ["x"], ["b0"])]
    for i in range(blocks):
        nodes += [
            helper.make_node("Conv", [f"b{i}", "w"], [f"c{i}"]),
            helper.make_node("Mul", [f"c{i}", "k"], [f"n{i}"]),
            helper.make_node("Shape", [f"n{i}"], [f"s{i}"]),
            helper.make_node("Reshape", [f"n{i}", f"s{i}"], [f"r{i}"]),
            helper.make_node("Relu", [f"r{i}"], [f"b{i + 1}"]),
        ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("x", f"b{blocks}")
    ]
    weights = {"w": np.ones((2, 2, 1, 1), np.float32), "k": np.ones(1, np.float32)}
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    body = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.slow
def test_time_is_linear_in_nodes() -> None:
    seconds = {}
    for blocks in (200, 800):
        model = import_model(chain(blocks)).model
        start = time.process_time()
        after = Manager().run(model, parse_pipeline("canonicalize", PASSES, MACROS), Context()).model
        seconds[blocks] = time.process_time() - start
        assert set(ops(after)) == {"Conv", "Relu"}
    # Four times the nodes: linear is 4, quadratic 16; the middle (in logarithms) tells them apart.
    assert seconds[800] < 8 * seconds[200] + 0.5


def test_big_external_weights_are_not_read(tmp_path: Path) -> None:
    """64 MiB in a sparse file: what a pass copied would show up as allocated memory."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4096]) for name in "xy"]
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4096, 4096])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": str(4096 * 4096 * 4)}.items():
        weight.external_data.add(key=key, value=value)
    constants = [weight, numpy_helper.from_array(rand(4096), "b")]
    body = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    onnx.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "m.onnx",
    )
    (tmp_path / "w.bin").write_bytes(np.random.default_rng(0).bytes(4096 * 4096 * 4))
    before = import_model(tmp_path / "m.onnx").model
    passes = parse_pipeline("canonicalize,compact-constants", PASSES, MACROS)
    tracemalloc.start()
    after = Manager().run(before, passes, Context()).model
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ops(after) == ["Gemm"]
    assert peak < 16 * 1024 * 1024


# --- real models ------------------------------------------------------------------------------------

DATA = os.environ.get("PARED_DATA")
MODELS = sorted((Path(DATA) / "models").glob("*.onnx")) if DATA else []
SHAPES = {"silero": {"input": [1, 576], "state": [2, 1, 128]}}


@pytest.mark.skipif(not MODELS, reason="PARED_DATA does not name a folder with models/*.onnx")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_real_models_keep_their_outputs(path: Path) -> None:
    before = import_model(path, shapes=_shapes(path)).model
    after = canonicalize(before)
    feeds = _feeds(before)
    samples = [feeds]
    bounds = derive_bound(_runnable(before), samples, seed=0)
    wants, gots = (outputs(_runnable(model), feeds) for model in (before, after))
    for value, want, got in zip(before.graph.outputs, wants, gots, strict=True):
        bound = bounds[str(value.name)]
        tolerance = bound.atol + bound.rtol_of_max * float(np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def _shapes(path: Path) -> dict[str, list[int]]:
    """Bind every symbolic size to 1 where the table above says nothing better."""
    for word, shapes in SHAPES.items():
        if word in path.stem:
            return shapes
    proto = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in proto.graph.initializer}
    return {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
        if value.name not in weights
    }


def _feeds(model: ir.Model) -> dict[str, np.ndarray]:
    feeds = feeds_for(model)
    return {name: np.array(16000, array.dtype) if name == "sr" else array for name, array in feeds.items()}


def _runnable(model: ir.Model) -> ir.Model:
    draft = model.clone()
    expand_custom_ops(draft)
    return draft
