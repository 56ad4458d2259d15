"""Divides a model among backends: convex regions, what crosses between them, and a verdict for every node.

A region is convex when no path leaves it and comes back; only then can it run as one piece. Regions are
numbered in an order in which they can run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .backend import Backend, Verdict
from .errors import UnsupportedOp

if TYPE_CHECKING:
    import onnx_ir as ir

    from .target import Target

# Error texts name this many nodes; the report has all of them.
_SHOWN = 5


@dataclass(frozen=True)
class Placement:
    """Where a node runs; `reason` says why it does not run where it was meant to, and is empty otherwise."""

    node: str
    op_type: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Region:
    """Nodes that run as one piece on one backend.

    Attributes:
        backend: name of the backend.
        nodes: in graph order.
        inputs: names of the values that come in: graph inputs and results of earlier regions.
        outputs: names of the values that later regions or the graph's outputs need.
    """

    backend: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The division: regions in running order, placements in graph order."""

    regions: tuple[Region, ...]
    placements: tuple[Placement, ...]

    @property
    def fallen_back(self) -> tuple[Placement, ...]:
        """Nodes that do not run on the backend that was asked for."""
        return tuple(placement for placement in self.placements if placement.reason)


def partition(
    model: ir.Model, backends: Mapping[str, Backend], target: Target, fallback: Target | None = None
) -> Plan:
    """Divide the main graph's nodes between the target's backend and, where given, the fallback's.

    Control flow is placed with its bodies: a body's node that is refused refuses the node around it.

    Args:
        model: imported; not edited.
        backends: by name; must hold those of both targets.
        target: names its backend and sets the limits.
        fallback: where refused nodes go; None refuses the model instead.

    Raises:
        UnsupportedOp: `op-unsupported`, listing nodes and reasons, when a node has nowhere to run.
    """
    nodes = list(model.graph)
    verdicts = [_verdict(node, backends[target.backend], target) for node in nodes]
    refused = [
        (node, verdict.reason) for node, verdict in zip(nodes, verdicts, strict=True) if not verdict.ok
    ]
    if refused and fallback is None:
        raise _unsupported(target, refused, "choose another target, or let the CPU run these: --fallback cpu")
    if refused and fallback is not None:
        tried = [(node, _verdict(node, backends[fallback.backend], fallback)) for node, _ in refused]
        if nowhere := [(node, verdict.reason) for node, verdict in tried if not verdict.ok]:
            raise _unsupported(fallback, nowhere, "replace these operators")
    elsewhere = fallback.backend if fallback is not None else ""
    places = [target.backend if verdict.ok else elsewhere for verdict in verdicts]
    placements = (
        Placement(_name(node), node.op_type, place, verdict.reason)
        for node, place, verdict in zip(nodes, places, verdicts, strict=True)
    )
    return Plan(tuple(group(model, nodes, places)), tuple(placements))


def _verdict(node: ir.Node, backend: Backend, target: Target) -> Verdict:
    for inner in (node, *_body_nodes(node)):
        verdict = backend.supports(inner, target)
        if not verdict.ok:
            return (
                verdict if inner is node else Verdict.no(f"its body has {_name(inner)!r}: {verdict.reason}")
            )
    return Verdict.yes()


def needs(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node depends on, including what its bodies take from the graphs around them."""
    yield from (value for value in node.inputs if value is not None)
    for graph in _bodies(node):
        yield from graph.outputs
        for inner in graph:
            yield from needs(inner)


def group(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    places: Sequence[str],
    needs: Callable[[ir.Node], Iterable[ir.Value]] = needs,
) -> Iterator[Region]:
    """Group nodes by level and place.

    `nodes` are in graph order, `places` say where each runs, `needs` what each depends on: values that are
    neither inputs of the graph nor made by one of `nodes` do not flow.

    A node's level is that of what it depends on, plus one wherever the place changes. Along a path levels
    never fall, and within a level the place stays; so a path that leaves a group cannot come back to it.
    """
    home: dict[ir.Value, tuple[int, str]] = {}
    groups: dict[tuple[int, str], list[ir.Node]] = {}
    for node, place in zip(nodes, places, strict=True):
        before = [home[value] for value in needs(node) if value in home]
        key = max((level + (other != place) for level, other in before), default=0), place
        home.update(dict.fromkeys(node.outputs, key))
        groups.setdefault(key, []).append(node)
    inputs = {*model.graph.inputs}
    taken = {key: _taken(members, inputs, home, key, needs) for key, members in groups.items()}
    crossing = {value for values in taken.values() for value in values} | {*model.graph.outputs}
    for key in sorted(groups):
        made = [value for node in groups[key] for value in node.outputs if value in crossing]
        yield Region(key[1], tuple(groups[key]), _names(taken[key]), _names(made))


def _taken(
    members: Sequence[ir.Node],
    inputs: Collection[ir.Value],
    home: Mapping[ir.Value, tuple[int, str]],
    key: tuple[int, str],
    needs: Callable[[ir.Node], Iterable[ir.Value]],
) -> list[ir.Value]:
    """Return the values that flow into a group, in the order of their first use; constants do not flow."""
    values = dict.fromkeys(value for node in members for value in needs(node))
    return [value for value in values if value in inputs or home.get(value, key) != key]


def _body_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for graph in _bodies(node):
        yield from graph.all_nodes()


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            yield attribute.as_graph()
        elif attribute.type.name == "GRAPHS":
            yield from attribute.as_graphs()


def _names(values: Sequence[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)


def _name(node: ir.Node) -> str:
    """Return the node's name, or that of what it makes."""
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def _unsupported(target: Target, refused: Sequence[tuple[ir.Node, str]], way_out: str) -> UnsupportedOp:
    listed = "; ".join(f"{_name(node)!r} ({node.op_type}): {reason}" for node, reason in refused[:_SHOWN])
    more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    return UnsupportedOp(
        "op-unsupported", f"target {target.name} cannot run {len(refused)} node(s): {listed}{more}", way_out
    )
