import itertools
import sys
from collections.abc import Mapping

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.compiler.backend import Verdict
from pared.compiler.errors import UnsupportedOp
from pared.compiler.partition import Plan, partition
from pared.compiler.target import Target


def target(backend: str) -> Target:
    return Target(name=backend, description="a test", backend=backend, engines=("one",))


class Picky:
    """Takes every operator but those named."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        return Verdict.no("not here") if node.op_type in self.refused else Verdict.yes()


def model(edges: Mapping[int, list[int]], ops: list[str], outputs: list[int]) -> ir.Model:
    """Node `i` has operator `ops[i]` and takes the results of nodes `edges[i]`; without any, the input."""
    x = ir.Value(name="x")
    nodes: list[ir.Node] = []
    for index, op in enumerate(ops):
        inputs = [nodes[source].outputs[0] for source in edges.get(index, [])] or [x]
        nodes.append(ir.Node("", op, inputs, name=f"n{index}"))
        nodes[-1].outputs[0].name = f"v{index}"
    return ir.Model(
        ir.Graph([x], [nodes[index].outputs[0] for index in outputs], nodes=nodes, opset_imports={"": 21}),
        ir_version=10,
    )


def divide(graph: ir.Model, refused: str = "B", fallback: bool = True) -> Plan:
    backends = {"npu": Picky(refused), "cpu": Picky("C")}
    return partition(graph, backends, target("npu"), target("cpu") if fallback else None)


def shown(plan: Plan) -> list[tuple[str, list[str]]]:
    return [(region.backend, [node.name or "" for node in region.nodes]) for region in plan.regions]


def test_a_model_that_fits_is_one_region():
    plan = divide(model({1: [0], 2: [1]}, ["A", "A", "A"], [2]))
    assert shown(plan) == [("npu", ["n0", "n1", "n2"])]
    assert plan.regions[0].inputs == ("x",)
    assert plan.regions[0].outputs == ("v2",)
    assert plan.fallen_back == ()


def test_a_refused_node_cuts_the_graph():
    plan = divide(model({1: [0], 2: [1]}, ["A", "B", "A"], [2]))
    assert shown(plan) == [("npu", ["n0"]), ("cpu", ["n1"]), ("npu", ["n2"])]
    assert [region.inputs for region in plan.regions] == [("x",), ("v0",), ("v1",)]
    assert [region.outputs for region in plan.regions] == [("v0",), ("v1",), ("v2",)]


def test_a_path_around_a_refused_node_is_cut_too():
    # n0 and n2 may not share a region: the path through n1 would leave it and come back.
    plan = divide(model({1: [0], 2: [0, 1]}, ["A", "B", "A"], [2]))
    assert shown(plan) == [("npu", ["n0"]), ("cpu", ["n1"]), ("npu", ["n2"])]


def test_branches_beside_a_refused_node_stay_together():
    plan = divide(model({1: [0], 2: [0], 3: [2]}, ["A", "B", "A", "A"], [1, 3]))
    assert shown(plan) == [("npu", ["n0", "n2", "n3"]), ("cpu", ["n1"])]


def test_fallen_back_nodes_are_recorded_with_the_reason():
    plan = divide(model({1: [0]}, ["A", "B"], [1]))
    assert [(p.node, p.op_type, p.backend, p.reason) for p in plan.fallen_back] == [
        ("n1", "B", "cpu", "not here")
    ]


def test_without_fallback_the_nodes_and_reasons_are_listed():
    with pytest.raises(
        UnsupportedOp, match=r"1 node\(s\): 'n1' \(B\): not here \(.*--fallback cpu"
    ) as caught:
        divide(model({1: [0]}, ["A", "B"], [1]), fallback=False)
    assert caught.value.reason == "op-unsupported"


def test_a_node_that_nobody_takes_is_refused():
    with pytest.raises(UnsupportedOp, match="target cpu cannot run"):
        divide(model({}, ["C"], [0]), refused="C")


def test_many_refusals_are_counted():
    with pytest.raises(UnsupportedOp, match=r"9 node.*'n4' .*and 4 more"):
        divide(model({}, ["B"] * 9, [0]), fallback=False)


def test_a_body_goes_with_the_node_around_it():
    outer = model({1: [0]}, ["A", "A"], [1])
    captured = outer.graph.node(0).outputs[0]
    inner = ir.Node("", "B", [captured], name="inside")
    inner.outputs[0].name = "w"
    body = ir.Graph([], [inner.outputs[0]], nodes=[inner])
    branch = ir.Node(
        "", "If", [outer.graph.node(1).outputs[0]], [ir.AttrGraph("then_branch", body)], name="if"
    )
    branch.outputs[0].name = "z"
    outer.graph.append(branch)
    outer.graph.outputs.append(branch.outputs[0])
    plan = divide(outer)
    assert shown(plan) == [("npu", ["n0", "n1"]), ("cpu", ["if"])]
    assert plan.regions[1].inputs == ("v1", "v0"), "what the body takes from outside comes in as well"
    assert plan.fallen_back[0].reason == "its body has 'inside': not here"


def test_constants_do_not_cross():
    graph = model({1: [0]}, ["A", "B"], [1])
    weight = ir.Value(name="w", const_value=ir.tensor([1.0], name="w"))
    graph.graph.register_initializer(weight)
    for node in list(graph.graph):
        graph.graph.append(ir.Node("", "B", [node.outputs[0], weight], name=f"with-{node.name}"))
    assert all("w" not in region.inputs for region in divide(graph).regions)


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    count = draw(st.integers(1, 14))
    ops = draw(st.lists(st.sampled_from("AB"), min_size=count, max_size=count))
    edges = {
        index: draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) for index in range(1, count)
    }
    return model(edges, ops, [count - 1])


def reachable(graph: ir.Model) -> set[tuple[str, str]]:
    """Return every (a, b) with a path from node a to node b."""
    after: dict[str, set[str]] = {}
    for node in reversed(list(graph.graph)):
        direct = {consumer.name or "" for consumer in node.outputs[0].consumers()}
        after[node.name or ""] = direct.union(*(after[name] for name in direct))
    return {(first, second) for first, seconds in after.items() for second in seconds}


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_regions_cover_every_node_once(graph):
    names = [node.name for region in divide(graph).regions for node in region.nodes]
    assert sorted(names) == sorted(node.name for node in graph.graph)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_regions_are_convex(graph):
    paths = reachable(graph)
    for _, members in shown(divide(graph)):
        others = [node.name or "" for node in graph.graph if node.name not in members]
        for first, outside, last in itertools.product(members, others, members):
            assert not ((first, outside) in paths and (outside, last) in paths)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_regions_run_in_their_order(graph):
    ready = {"x"}
    for region in divide(graph).regions:
        assert set(region.inputs) <= ready
        ready.update(region.outputs)
    assert {value.name for value in graph.graph.outputs} <= ready


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_regions_hold_what_their_backend_takes(graph):
    for region in divide(graph).regions:
        assert {node.op_type for node in region.nodes} == {"A" if region.backend == "npu" else "B"}


def test_ten_thousand_nodes_are_linear():
    """Counted in calls, of Python and C functions alike: times depend on the machine."""

    def calls(count: int) -> int:
        graph = model(
            {index: [index - 1] for index in range(1, count)}, ["A", "B"] * (count // 2), [count - 1]
        )
        seen = 0

        def note(frame: object, event: str, arg: object) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            divide(graph)
        finally:
            sys.setprofile(None)
        return seen

    assert calls(10_000) < 11 * calls(1_000)
