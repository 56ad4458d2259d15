"""What a NIR graph computes in which order: parts inlined, shapes known, loops cut where a step passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ....compiler.errors import UnsupportedOp
from .read import malformed
from .records import STATEFUL, Edge, Graph, Node
from .sizes import Shape, size_out

# Seconds per step of files that do not say it but have time constants: what most writers of NIR take.
DEFAULT_DT = 1e-4
_TIMED = ("tau", "tau_mem", "tau_syn", "delay")


@dataclass(frozen=True, eq=False)
class Step:
    """A node with what arrives at it, which adds up.

    Attributes:
        sources: names of nodes whose value of this step arrives.
        late: names of those whose value of the step before does; zero in the first.
        shape_in, shape_out: without the batch.
    """

    name: str
    node: Node
    sources: tuple[str, ...]
    late: tuple[str, ...]
    shape_in: Shape
    shape_out: Shape


@dataclass(frozen=True, eq=False)
class Plan:
    """A graph ready to run.

    Attributes:
        steps: every node but Input and Output, in order.
        source, sink: names of Input and Output.
        leaving: names of the nodes that add up to the output.
        dt: seconds per step.
        notes: what was assumed.
    """

    steps: tuple[Step, ...]
    source: str
    sink: str
    leaving: tuple[str, ...]
    shape_in: Shape
    shape_out: Shape
    dt: float
    notes: tuple[str, ...]


def make_plan(graph: Graph) -> Plan:
    """Order a graph.

    A loop is cut at the edge that leads back to where the input enters it: what it carries arrives one step
    later, nothing in the first step, as in Norse and SpikingJelly.

    Raises:
        ModelError: `nir-malformed`: shapes that do not meet.
        UnsupportedOp: `nir-ports`: not one input and one output.
    """
    nodes, edges = inline(graph)
    source, sink = _only(nodes, "Input"), _only(nodes, "Output")
    into: dict[str, list[str]] = {name: [] for name in nodes}
    for start, end in edges:
        into[end].append(start)
    order, late = _order(nodes, into, source)
    shapes: dict[str, Shape] = {source: _shape(nodes[source])}
    steps = []
    for name in order:
        if name not in (source, sink):
            steps.append(_step(name, nodes[name], into[name], late, shapes))
    _check_late(steps, shapes)
    leaving = tuple(name for name in into[sink] if name in shapes)
    if not leaving:
        raise malformed(f"node {sink!r}", "nothing arrives at it")
    shape = _meet(sink, [shapes[name] for name in leaving])
    if shape != _shape(nodes[sink]):
        raise malformed(f"node {sink!r}", f"{shape} arrives, it says {_shape(nodes[sink])}")
    dt, notes = _time_step(graph, nodes)
    return Plan(tuple(steps), source, sink, leaving, shapes[source], shape, dt, notes)


def inline(graph: Graph, prefix: str = "") -> tuple[dict[str, Node], list[Edge]]:
    """Return nodes and edges with inner graphs put in place; their nodes are named `<graph>.<node>`."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    entries: dict[str, str] = {}
    exits: dict[str, str] = {}
    for name, part in graph.nodes.items():
        if isinstance(part, Node):
            nodes[prefix + name] = part
            continue
        inner, links = inline(part, f"{prefix}{name}.")
        entries[name], exits[name] = _only(inner, "Input"), _only(inner, "Output")
        nodes |= inner
        edges += links
    for start, end in graph.edges:
        edges.append((exits.get(start, prefix + start), entries.get(end, prefix + end)))
    return _without_ports(nodes, edges, [*entries.values(), *exits.values()])


def _without_ports(
    nodes: dict[str, Node], edges: list[Edge], ports: list[str]
) -> tuple[dict[str, Node], list[Edge]]:
    """Join what comes to the ports of inner graphs with what they go to."""
    for port in ports:
        before = [start for start, end in edges if end == port]
        behind = [end for start, end in edges if start == port]
        kept = [edge for edge in edges if port not in edge]
        edges = kept + [(start, end) for start in before for end in behind]
        del nodes[port]
    return nodes, list(dict.fromkeys(edges))


def _only(nodes: Mapping[str, Node], kind: str) -> str:
    found = [name for name, node in nodes.items() if node.kind == kind]
    if len(found) != 1:
        raise UnsupportedOp(
            "nir-ports", f"a graph has {len(found)} nodes {kind}, one is needed", "split or join them"
        )
    return found[0]


def _order(
    nodes: Mapping[str, Node], into: Mapping[str, list[str]], source: str
) -> tuple[list[str], set[Edge]]:
    """Return an order of the nodes that the input reaches, and the edges that end a step later."""
    out: dict[str, list[str]] = {name: [] for name in nodes}
    for end, starts in into.items():
        for start in starts:
            out[start].append(end)
    done: list[str] = []
    state: dict[str, int] = {}
    late: set[Edge] = set()
    stack = [(source, iter(out[source]))]
    state[source] = 1
    while stack:
        name, following = stack[-1]
        end = next(following, "")
        if not end:
            done.append(name)
            state[name] = 2
            stack.pop()
        elif state.get(end) == 1:
            late.add((name, end))
        elif end not in state:
            state[end] = 1
            stack.append((end, iter(out[end])))
    return _sorted(done[::-1], into, late), late


def _sorted(found: list[str], into: Mapping[str, list[str]], late: set[Edge]) -> list[str]:
    """Order nodes by the edges that do not wait (Kahn), starting from a depth-first order."""
    position = {name: index for index, name in enumerate(found)}
    needs = {n: {s for s in into[n] if s in position and (s, n) not in late} for n in found}
    order: list[str] = []
    ready = [name for name in found if not needs[name]]
    users: dict[str, list[str]] = {name: [] for name in found}
    for name, starts in needs.items():
        for start in starts:
            users[start].append(name)
    while ready:
        name = ready.pop(0)
        order.append(name)
        for user in sorted(users[name], key=position.__getitem__):
            needs[user].discard(name)
            if not needs[user]:
                ready.append(user)
    if len(order) != len(found):
        left = next(name for name in found if name not in order)
        raise malformed(f"node {left!r}", "its loops cannot be put in an order")
    return order


def _step(name: str, node: Node, starts: list[str], late: set[Edge], shapes: dict[str, Shape]) -> Step:
    where = f"node {name!r}"
    now = tuple(start for start in starts if (start, name) not in late and start in shapes)
    before = tuple(start for start in starts if (start, name) in late)
    shape = _meet(name, [shapes[start] for start in now]) if now else _own_shape(node, where)
    shapes[name] = size_out(node, shape, where)
    return Step(name, node, now, before, shape, shapes[name])


def _own_shape(node: Node, where: str) -> Shape:
    """Return the shape that a node takes by its own parameters, where only a loop feeds it."""
    if node.kind in ("Affine", "Linear"):
        return (int(node.array("weight").shape[1]),)
    if node.kind in STATEFUL or node.kind in ("Scale", "Threshold"):
        return max((np.shape(value) for value in node.values.values()), key=len)
    raise malformed(where, "the shape of what arrives cannot be told")


def _check_late(steps: list[Step], shapes: Mapping[str, Shape]) -> None:
    for step in steps:
        for name in step.late:
            if shapes[name] != step.shape_in:
                _meet(step.name, [step.shape_in, shapes[name]])


def _meet(name: str, shapes: list[Shape]) -> Shape:
    if len(set(shapes)) != 1:
        raise malformed(f"node {name!r}", f"shapes {sorted(set(shapes))} arrive, which do not add up")
    return shapes[0]


def _shape(node: Node) -> Shape:
    shape = tuple(int(size) for size in node.array("shape"))
    if not shape or min(shape) < 1 or int(np.prod([float(size) for size in shape])) >= 2**31:
        raise malformed(f"a node {node.kind}", f"shape {shape}")
    return shape


def _time_step(graph: Graph, nodes: Mapping[str, Node]) -> tuple[float, tuple[str, ...]]:
    """Return seconds per step: what the file notes, else 1 where time does not matter, else the usual one."""
    noted = graph.metadata.get("dt")
    if noted is not None:
        dt = float(np.asarray(noted).reshape(-1)[0]) if np.asarray(noted).dtype.kind in "iuf" else 0.0
        if not 0 < dt < float("inf"):
            raise malformed("metadata", f"dt = {noted}")
        return dt, ()
    timed = any(key in node.values for node in nodes.values() for key in _TIMED)
    resisting = [node.array("r") for node in nodes.values() if "r" in node.values]
    if not timed and all(bool(np.all(r == 1)) for r in resisting):
        return 1.0, ()
    note = f"the file has no metadata `dt`; one step is taken as {DEFAULT_DT} s"
    return DEFAULT_DT, (note,)
