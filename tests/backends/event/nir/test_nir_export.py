from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from event_models import images, quantized
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.event import graph as G
from pared.backends.event.bounds import layer_bounds
from pared.backends.event.nir.backend import NirBackend
from pared.backends.event.nir.coarse import coarsen
from pared.backends.event.nir.plan import make_plan
from pared.backends.event.nir.records import Graph, Node
from pared.backends.event.nir.stepper import Stepper
from pared.backends.event.nir.unary import unroll
from pared.backends.event.read import read
from pared.backends.event.simulate import encode, graded
from pared.compiler.errors import ArtifactError, DataError, TargetError, UnsupportedOp
from pared.compiler.pass_api import Context
from pared.targets import load_target

pytest.importorskip("h5py")

IMAGE = (4, 6, 5)


def network(layers, low=-3, high=4, shape=IMAGE) -> G.EventGraph:
    """Return a graph whose layers are (name, shape, connections, thresholds or None), bounds worked out."""
    entry = G.Input("x", "x", shape, None, 0, low, high, "INT32", fed=shape)
    graph = G.EventGraph((entry,), (), ())
    for name, size, connections, thresholds in layers:
        rows = None if thresholds is None else np.asarray(thresholds, np.int64).reshape(1, -1)
        ladder = None if rows is None else G.Ladder(0, rows, np.ones(1))
        one = np.ones(1)
        layer = G.Layer(name, size, connections, np.full(1, 2), ladder, one, 0 * one, (0, 0))
        graph = replace(graph, layers=(*graph.layers, layer))
        least, most = layer_bounds(graph, layer)
        layer = replace(layer, bounds=(int(least.min()), int(most.max())))
        graph = replace(graph, layers=(*graph.layers[:-1], layer))
    return replace(graph, outputs=(G.Output("y", name, size, "INT32"),))


def stepped(graph: G.EventGraph, x) -> np.ndarray:
    """Return what the exported network gives in one step, and check that it is portable."""
    nir = unroll(graph).graph
    kinds = {node.kind for node in nir.nodes.values() if isinstance(node, Node)}
    assert kinds <= {"Input", "Output", "Affine", "Conv2d", "IF"}
    assert all(node.values.get("groups", 1) == 1 for node in nir.nodes.values() if isinstance(node, Node))
    plan = make_plan(nir)
    counts = encode(graph.inputs[0], x).reshape(len(x), 1, *plan.shape_in)
    return Stepper(plan).run(counts.astype(np.float32)).reshape(len(x), -1)


def same(graph: G.EventGraph, seed=0) -> bool:
    entry = graph.inputs[0]
    x = np.random.default_rng(seed).integers(entry.low, entry.high + 1, (9, *entry.shape))
    want = graded(graph, {"x": x})[graph.outputs[0].layer].reshape(9, -1)
    return np.array_equal(stepped(graph, x), want)


def conv(rng, outputs, inputs, window, groups=1) -> G.Conv:
    weights = rng.integers(-4, 5, (outputs, inputs // groups, *window.kernel))
    return G.Conv(weights.astype(np.int32), window, groups)


def dense(rng, outputs, inputs) -> G.Dense:
    return G.Dense(rng.integers(-4, 5, (outputs, inputs)).astype(np.int32))


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_any_window_and_groups_give_the_same_integers(kernel, strides, pads, dilations, groups, seed):
    rng, window = np.random.default_rng(seed), G.Window(kernel, strides, pads, dilations)
    first = G.Window((2, 2), (1, 1), (1, 0, 0, 1))
    size = window.out(6, 5)
    graph = network(
        [
            ("a", (4, 6, 5), (G.Connection("x", conv(rng, 4, 4, first)),), [3, 4, 9, 20]),
            ("b", (8, *size), (G.Connection("a", conv(rng, 8, 4, window, groups)),), [0, 5, 6]),
            ("c", (3,), (G.Connection("b", dense(rng, 3, 8 * size[0] * size[1])),), None),
        ]
    )
    assert same(graph, seed)


def test_maxima_sums_and_concatenations_give_the_same_integers():
    rng, half = np.random.default_rng(1), G.Window((2, 2), (2, 2))
    ones = G.Window((1, 1))
    graph = network(
        [
            ("a", (4, 6, 4), (G.Connection("x", conv(rng, 4, 4, ones)),), [1, 5, 8]),
            ("b", (4, 6, 4), (G.Connection("x", conv(rng, 4, 4, ones)),), [2, 9]),
            (
                "sum",
                (4, 6, 4),
                (G.Connection("a", G.OneToOne()), G.Connection("b", conv(rng, 4, 4, ones))),
                [1, 4, 6],
            ),
            ("max", (4, 3, 2), (G.Connection("sum", G.MaxPool(half)),), [1, 2, 3]),
            ("mean", (4, 3, 2), (G.Connection("a", G.SumPool(half)),), [2, 6, 11]),
            (
                "both",
                (8, 3, 2),
                (G.Connection("max", G.OneToOne()), G.Connection("mean", G.OneToOne(4))),
                [3, 4],
            ),
            ("out", (5,), (G.Connection("both", dense(rng, 5, 48)),), None),
        ],
        shape=(4, 6, 4),
    )
    graph = replace(graph, layers=tuple(_unbiased(x) if x.name == "max" else x for x in graph.layers))
    assert same(graph)


def _unbiased(layer: G.Layer) -> G.Layer:
    return replace(layer, bias=np.zeros(1, np.int64), bounds=(0, 3))


def test_counts_that_leave_the_network_are_summed():
    rng = np.random.default_rng(2)
    graph = network([("a", (7,), (G.Connection("x", dense(rng, 7, 6)),), [0, 4, 5])], shape=(6,))
    assert same(graph)


def test_counts_that_rest_below_zero_are_carried_by_the_bias():
    rng = np.random.default_rng(3)
    graph = network(
        [
            ("a", (7,), (G.Connection("x", dense(rng, 7, 6)),), [-5, 0, 4]),
            ("b", (3,), (G.Connection("a", dense(rng, 3, 7)),), None),
        ],
        shape=(6,),
    )
    signed = replace(graph.layers[0], ladder=replace(graph.layers[0].ladder, low=-2))
    graph = replace(graph, layers=(signed, graph.layers[1]))
    least, most = layer_bounds(graph, graph.layers[1])
    last = replace(graph.layers[1], bounds=(int(least.min()), int(most.max())))
    assert same(replace(graph, layers=(signed, last)))


def test_padded_counts_that_rest_below_zero_are_refused():
    rng, window = np.random.default_rng(3), G.Window((3, 3), (1, 1), (1, 1, 1, 1))
    graph = network(
        [
            ("a", (2, 6, 5), (G.Connection("x", conv(rng, 2, 4, window)),), [-5, 0, 4]),
            ("b", (2, 6, 5), (G.Connection("a", conv(rng, 2, 2, window)),), None),
        ]
    )
    signed = replace(graph.layers[0], ladder=replace(graph.layers[0].ladder, low=-2))
    with pytest.raises(UnsupportedOp, match="'b' pads counts that rest at -2") as caught:
        unroll(replace(graph, layers=(signed, graph.layers[1])))
    assert caught.value.reason == "nir-export"


def test_sums_beyond_what_float32_holds_are_refused():
    weights = np.full((2, 6), 2_000_000, np.int32)
    graph = network([("a", (2,), (G.Connection("x", G.Dense(weights)),), [1])], shape=(6,))
    with pytest.raises(UnsupportedOp, match=r"'a' may reach \d+, simulators compute in float32"):
        unroll(graph)


def test_fine_values_become_coarse_ones_that_decide_alike():
    fine = (np.arange(6) * 11_184_811 + np.array([0, 1, -1, 2, 0, 1])).astype(np.int64)
    window = G.Window((2, 2), (2, 2))
    connection = G.Connection("x", G.SumPool(window), fine)
    graph = network([("a", (4, 3, 2), (connection,), [30_000_000, 100_000_000])], 0, 5, (4, 6, 4))
    graph = replace(graph, layers=(replace(graph.layers[0], bias=np.zeros(1, np.int64)),))
    assert coarsen(graph).layers[0].connections[0].values is None
    assert same(graph)


def test_fine_values_stay_where_a_threshold_lies_between_equal_sums():
    fine = (np.arange(6) * 1000 + np.array([0, 9, -9, 9, -9, 9])).astype(np.int64)
    window = G.Window((2, 2), (2, 2))
    connection = G.Connection("x", G.SumPool(window), fine)
    graph = network([("a", (4, 3, 2), (connection,), [3000])], 0, 5, (4, 6, 4))
    graph = replace(graph, layers=(replace(graph.layers[0], bias=np.zeros(1, np.int64)),))
    assert coarsen(graph).layers[0].connections[0].values is not None


def test_sums_of_two_fine_values_become_coarse_ones():
    rng = np.random.default_rng(4)
    left = np.sort(rng.integers(0, 2**30, 8))
    right = np.sort(rng.integers(0, 2**30, 8))
    ends = np.sort(rng.integers(0, 2**31, 5))
    connections = (G.Connection("x", G.OneToOne(), left), G.Connection("x", G.OneToOne(), right))
    graph = network([("a", IMAGE, connections, ends)], 0, 7)
    graph = replace(graph, layers=(replace(graph.layers[0], bias=np.zeros(1, np.int64)),))
    coarse = coarsen(graph)
    assert coarse.layers[0].bounds[1] < 2**22
    x = np.random.default_rng(0).integers(0, 8, (50, *IMAGE))
    assert np.array_equal(graded(coarse, {"x": x})["a"], graded(graph, {"x": x})["a"])


@pytest.mark.parametrize(("name", "bits", "samples"), [("digits_mlp", 8, 10), ("digits_cnn", 2, 20)])
def test_our_own_stepper_gives_the_integers_of_the_event_graph(name, bits, samples):
    graph, x = read(quantized(name, bits)), images(samples)
    want = graded(graph, {"image": x})[graph.outputs[0].layer].reshape(samples, -1)
    assert np.array_equal(stepped(graph, x), want)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    target, folder = load_target("event-nir"), tmp_path_factory.mktemp("nir")
    payload = NirBackend().lower(quantized("digits_mlp", 4), target, "stepper", Context(target=target))
    payload.move_to(folder)
    return folder


def test_a_compiled_model_gives_what_the_event_engine_gives(compiled):
    model, x = NirBackend().load(compiled, "stepper", {}, None), images(20)
    graph = read(quantized("digits_mlp", 4))
    layer = graph.layer(graph.outputs[0].layer)
    counts = graded(graph, {"image": x})[layer.name]
    assert np.array_equal(model.run({"image": x})["logits"], np.float32(counts * layer.scale + layer.offset))
    assert model.run({"image": x[:0]})["logits"].shape == (0, 10)
    with pytest.raises(DataError, match="image"):
        model.run({"image": x[..., :7]})
    model.close()
    with pytest.raises(ArtifactError, match="closed"):
        model.run({"image": x})


@pytest.mark.parametrize("name", ["model.nir", "model.json"])
def test_a_damaged_payload_is_refused(compiled, tmp_path, name):
    for file in compiled.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
    with pytest.raises(ArtifactError, match=name):
        NirBackend().load(tmp_path, "stepper", {}, None)


def test_float_models_and_unknown_engines_are_refused():
    from pared.compiler.ir.importer import import_model

    target = load_target("event-nir")
    path = __file__.rpartition("/tests/")[0] + "/examples/models/digits_mlp.onnx"
    with pytest.raises(UnsupportedOp) as caught:
        NirBackend().lower(import_model(path).model, target, "stepper", Context(target=target))
    assert caught.value.reason == "event-unsupported"
    with pytest.raises(TargetError, match="no engine 'graded'"):
        NirBackend().lower(quantized("digits_mlp", 4), target, "graded", Context(target=target))


def test_equal_models_give_equal_files():
    from pared.backends.event.nir.write import write_nir

    graph = read(quantized("digits_mlp", 4))
    first, second = (unroll(graph).graph for _ in range(2))
    assert isinstance(first, Graph)
    assert write_nir(first) == write_nir(second)


def test_sums_of_two_fine_values_stay_where_coarse_ones_cannot_tell_them_apart():
    left, right = np.array([0, 2**30]), np.array([0, 2**30 - 1])
    connections = (G.Connection("x", G.OneToOne(), left), G.Connection("x", G.OneToOne(), right))
    graph = network([("a", IMAGE, connections, [2**30])], 0, 1)
    graph = replace(graph, layers=(replace(graph.layers[0], bias=np.zeros(1, np.int64)),))
    assert coarsen(graph).layers[0] is graph.layers[0]
