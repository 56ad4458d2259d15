"""Networks over time: our stepper, the reference, onnxruntime and other people's simulators agree."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pared.backends.event.nir.backend import NirBackend
from pared.backends.event.nir.from_onnx import from_onnx, scan_of
from pared.backends.event.nir.plan import make_plan
from pared.backends.event.nir.records import Graph, Node
from pared.backends.event.nir.stepper import Stepper
from pared.backends.event.nir.to_onnx import to_onnx
from pared.backends.reference import evaluate
from pared.compiler.errors import ArtifactError, UnsupportedOp
from pared.compiler.ir.importer import import_model
from pared.compiler.ops import expand_custom_ops
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context
from pared.targets import load_target

pytest.importorskip("h5py")
RNG = np.random.default_rng(7)


def uniform(low: float, high: float, shape=(4,)) -> np.ndarray:
    return RNG.uniform(low, high, shape)


def firing(shape=(4,)) -> dict[str, np.ndarray]:
    return {"v_threshold": uniform(0.2, 0.6, shape), "v_reset": uniform(-0.3, 0.1, shape)}


def leaky(shape=(4,)) -> dict[str, np.ndarray]:
    return {"r": uniform(1, 4, shape), "v_leak": uniform(-0.2, 0.2, shape)}


def cuba() -> dict[str, np.ndarray]:
    return {"tau_syn": uniform(2e-4, 1e-3), "tau_mem": uniform(2e-4, 1e-3), "w_in": uniform(1, 3), **leaky()}


def affine(outputs: int, inputs: int) -> Node:
    weight = np.float32(RNG.normal(size=(outputs, inputs)))
    return Node("Affine", {"weight": weight, "bias": np.float32(RNG.normal(size=outputs))})


def conv(rank: int, padding="same", groups=1) -> Node:
    weight = np.float32(RNG.normal(size=(4, 2 // groups, *(3, 2)[:rank])))
    two = np.array((1, 2)[:rank]) if rank == 2 else 2
    one = np.array([1, 1]) if rank == 2 else 1
    stride = one if isinstance(padding, str) and padding == "same" else two
    bias = np.float32(RNG.normal(size=4))
    values = {"weight": weight, "stride": stride, "padding": padding, "dilation": one, "groups": groups}
    return Node(f"Conv{rank}d", values | {"bias": bias})


def pool(kind: str) -> Node:
    sizes = {"kernel_size": np.array([3, 2]), "stride": np.array([2, 1]), "padding": np.array([1, 0])}
    return Node(kind, sizes)


def flatten(start: int, end: int) -> Node:
    return Node("Flatten", {"start_dim": start, "end_dim": end})


def network(shape, *nodes: Node) -> Graph:
    names = [f"n{index}" for index in range(len(nodes))]
    path = ["input", *names, "output"]
    parts: dict[str, Node | Graph] = dict(zip(names, nodes, strict=True))
    parts["input"] = Node("Input", {"shape": np.array(shape)})
    parts["output"] = Node("Output", {"shape": np.array(shape)})
    graph = Graph(parts, tuple(pairwise(path)), {"dt": 1e-4})
    return Graph(parts | {"output": _sink(graph)}, graph.edges, graph.metadata)


def _sink(graph: Graph) -> Node:
    from pared.backends.event.nir.sizes import size_out

    shape = tuple(graph.nodes["input"].array("shape"))
    for name, _ in graph.edges[1:]:
        shape = size_out(graph.nodes[name], shape, name)
    return Node("Output", {"shape": np.array(shape)})


def recurrent() -> Graph:
    nodes = {
        "input": Node("Input", {"shape": np.array([3])}),
        "in": affine(4, 3),
        "lif": Node("LIF", {"tau": uniform(2e-4, 1e-3), **leaky(), **firing()}),
        "back": affine(4, 4),
        "scale": Node("Scale", {"scale": np.float32(uniform(0.5, 2))}),
        "output": Node("Output", {"shape": np.array([4])}),
    }
    edges = [("input", "in"), ("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "scale")]
    return Graph(nodes, (*edges, ("scale", "output"), ("in", "output")), {"dt": 1e-4})


NETWORKS = {
    "I": network([4], Node("I", {"r": uniform(1e3, 1e4)})),
    "IF": network([4], Node("IF", {"r": uniform(1e3, 1e4), **firing()})),
    "LI": network([4], Node("LI", {"tau": uniform(2e-4, 1e-3), **leaky()})),
    "LIF": network([4], Node("LIF", {"tau": uniform(2e-4, 1e-3), **leaky(), **firing()})),
    "CubaLI": network([4], Node("CubaLI", cuba())),
    "CubaLIF": network([4], Node("CubaLIF", cuba() | firing())),
    "Delay": network([4], Node("Delay", {"delay": np.array([0, 1e-4, 2.9e-4, 5e-4])}), affine(3, 4)),
    "Scale, Threshold": network(
        [4],
        Node("Scale", {"scale": np.float32(uniform(1, 2))}),
        Node("Threshold", {"threshold": np.float32(uniform(0, 1))}),
    ),
    "Conv1d": network([2, 9], conv(1), Node("IF", {"r": np.full((4, 9), 1e4), **firing((4, 9))})),
    "Conv1d, stride": network([2, 9], conv(1, 1)),
    "Conv2d": network([2, 6, 5], conv(2), Node("LI", {"tau": np.full((4, 6, 5), 3e-4), **leaky((4, 6, 5))})),
    "Conv2d, groups": network([2, 6, 5], conv(2, np.array([1, 0]), 2)),
    "Conv2d, valid": network([2, 6, 5], conv(2, "valid")),
    "SumPool2d": network([2, 6, 5], pool("SumPool2d"), flatten(0, -1), affine(3, 24)),
    "AvgPool2d": network([2, 6, 5], pool("AvgPool2d"), flatten(1, 2)),
    "recurrent": recurrent(),
}  # fmt: skip


def spikes(graph: Graph, steps: int = 12) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.random((3, steps, *graph.nodes["input"].array("shape"))) < 0.4).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_stepper_reference_and_onnxruntime_agree_to_the_bit(name):
    graph = NETWORKS[name]
    plan, x = make_plan(graph), spikes(graph)
    want = Stepper(plan).run(x)
    assert np.unique(want).size > 1
    model = import_model(to_onnx(plan, "test")).model
    assert np.array_equal(evaluate(model, {"input": x})["output"], want)
    found = run_session(make_session(model), {"input": x})["output"]
    # Sums of products differ in order.
    assert np.allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_from_onnx(name):
    graph = NETWORKS[name]
    model = import_model(to_onnx(make_plan(graph), "test")).model
    scan = scan_of(model)
    assert scan is not None
    back = from_onnx(scan)
    assert {key: node.kind for key, node in back.nodes.items()} == {k: n.kind for k, n in graph.nodes.items()}
    assert set(back.edges) == set(graph.edges)
    x = spikes(graph)
    assert np.array_equal(Stepper(make_plan(back)).run(x), Stepper(make_plan(graph)).run(x))


def test_neurons_become_standard_operators():
    model = import_model(to_onnx(make_plan(NETWORKS["CubaLIF"]), "test")).model
    assert expand_custom_ops(model) == 1
    assert {node.domain for node in model.graph.all_nodes()} == {""}


def test_state_is_kept_between_calls_when_asked():
    graph = NETWORKS["recurrent"]
    x, stepper = spikes(graph), Stepper(make_plan(graph))
    whole = stepper.run(x)
    parts = [stepper.run(x[:, :5]), stepper.run(x[:, 5:], keep=True)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert not np.array_equal(stepper.run(x[:, 5:]), parts[1])


def test_what_returns_in_a_loop_arrives_one_step_later():
    weight = np.float32([[1]])
    nodes = {
        "input": Node("Input", {"shape": np.array([1])}),
        "a": Node("I", {"r": np.ones(1)}),
        "w": Node("Linear", {"weight": weight}),
        "output": Node("Output", {"shape": np.array([1])}),
    }
    edges = (("input", "a"), ("a", "w"), ("w", "a"), ("a", "output"))
    found = Stepper(make_plan(Graph(nodes, edges, {"dt": 1.0}))).run(np.float32([[[1], [0], [0], [0]]]))
    assert found.reshape(-1).tolist() == [1, 2, 4, 8]


def test_the_time_step_is_the_files_own_or_a_guess_that_is_told():
    lif = NETWORKS["LIF"]
    assert make_plan(Graph(lif.nodes, lif.edges, {"dt": 1e-3})).dt == 1e-3
    guessed = make_plan(Graph(lif.nodes, lif.edges))
    assert (guessed.dt, len(guessed.notes)) == (1e-4, 1)
    plain = network([4], Node("IF", {"r": np.ones(4), "v_threshold": np.ones(4)}))
    assert make_plan(Graph(plain.nodes, plain.edges)).dt == 1.0


def test_delays_beyond_any_queue_are_refused():
    with pytest.raises(UnsupportedOp, match="node 'n0': delays of"):
        Stepper(make_plan(network([1], Node("Delay", {"delay": np.array([1e9])}))))


def test_a_network_is_compiled_and_runs(tmp_path):
    graph, target = NETWORKS["recurrent"], load_target("event-nir")
    model = import_model(to_onnx(make_plan(graph), "test")).model
    payload = NirBackend().lower(model, target, "stepper", Context(target=target))
    payload.move_to(tmp_path)
    loaded, x = NirBackend().load(tmp_path, "stepper", {}, None), spikes(graph)
    assert np.array_equal(loaded.run({"input": x})["output"], Stepper(make_plan(graph)).run(x))
    assert loaded.run({"input": x[:0]})["output"].shape == (0, 12, 4)
    (tmp_path / "model.nir").unlink()
    with pytest.raises(ArtifactError):
        NirBackend().load(tmp_path, "stepper", {}, None)


def test_states_that_do_not_start_at_rest_are_not_written():
    model = to_onnx(make_plan(NETWORKS["LIF"]), "test")
    fill = next(node for node in model.graph.node if node.op_type == "ConstantOfShape").attribute[0]
    fill.t.float_data[0] = 0.5
    scan = scan_of(import_model(model).model)
    assert scan is not None
    with pytest.raises(UnsupportedOp, match="starts from states that are not zero"):
        from_onnx(scan)
