"""The model as the division sees it: nodes named, sizes known, constants and dequantizers looked through.

A DequantizeLinear belongs to each of its readers and a constant to everybody, so neither is ever a border:
what crosses is the quantized tensor. That keeps DQ -> layer -> Q whole, which docs/semantics.md defines as
one operator on integers.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ....compiler.ir.walk import Names, all_nodes, all_values, only_user, producer, static_shape
from ....compiler.partition import needs
from ..native.reader import bind_batch

# Operators whose results differ from run to run: they must not be computed in two regions.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

Sizes = tuple[int, ...]


class Draft:
    """A clone of a model to be divided; its nodes have names of their own.

    Attributes:
        model: the clone; an open batch stays open.
        nodes: what is placed, in graph order: nodes that depend on the inputs, without dequantizers.
        batched: the first size of inputs is open.
        shapes: by value name, for one sample; values of unknown size have none.
    """

    def __init__(self, model: ir.Model) -> None:
        """Work out what moves and how large it is.

        Raises:
            UnsupportedOp: `native-shape`: a size other than the batch is open.
        """
        self.model = model.clone()
        _name_nodes(self.model)
        self.batched = any(not isinstance(size, int) for size in _first_sizes(model))
        self.shapes = _shapes(self.model, 1)
        # Two samples make every size that belongs to the batch twice as large.
        self._of_two = _shapes(self.model, 2) if self.batched else self.shapes
        self._moving = _moving(self.model.graph)
        outputs = set(self.model.graph.outputs)
        self.nodes = [
            node
            for node in self.model.graph
            if any(value in self._moving for value in node.outputs)
            and (not self._looked_through(node) or not outputs.isdisjoint(node.outputs))
        ]

    def moves(self, value: ir.Value) -> bool:
        """Say whether a value depends on the inputs."""
        return value in self._moving

    def needs(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yield the values that must be there before a node can run, constants left out."""
        for value in needs(node):
            if value in self._moving:
                yield self.source(value)

    def source(self, value: ir.Value) -> ir.Value:
        """Return the quantized tensor behind a dequantized value, any other value itself."""
        node = producer(value, "DequantizeLinear")
        return value if node is None or not self._looked_through(node) else _first(node)

    def border(self, value: ir.Value) -> list[int | str] | None:
        """Return a value's shape as the input or output of a region; None when a native one cannot have it.

        The batch is called `batch`; every other size is known.
        """
        one, two = self.shapes.get(value.name or ""), self._of_two.get(value.name or "")
        if one is None or two is None:
            return None
        if not self.batched:
            return [*one]
        per_sample = one[:1] == (1,) and two == (2, *one[1:])
        return ["batch", *one[1:]] if per_sample else None

    def layers(self) -> Iterator[list[ir.Node]]:
        """Yield nodes that must run in one region: a quantizer and the layer that it rounds."""
        for node in self.nodes:
            if node.op_type == "QuantizeLinear":
                yield [node, *self._behind(node)]

    def _behind(self, quantizer: ir.Node) -> Iterator[ir.Node]:
        node = producer(self.source(_first(quantizer)))
        while node is not None and node.op_type != "QuantizeLinear":
            yield node
            if not self._is_epilogue(node):
                return
            node = next((producer(self.source(v)) for v in needs(node) if v in self._moving), None)

    def _is_epilogue(self, node: ir.Node) -> bool:
        """Say whether a node belongs to the layer before it: an activation, or the bias of a product."""
        if node.op_type in ("Relu", "Clip"):
            return True
        moving = [value for value in needs(node) if value in self._moving]
        before = producer(moving[0]) if len(moving) == 1 else None
        return (
            node.op_type == "Add"
            and before is not None
            and before.op_type == "MatMul"
            and only_user(moving[0]) is node
        )

    def _looked_through(self, node: ir.Node) -> bool:
        return node.op_type == "DequantizeLinear" and not node.domain and _first(node) in self._moving


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None, f"{node.op_type} without an input"
    return value


def _name_nodes(model: ir.Model) -> None:
    names, seen = Names(model), set[str]()
    for node in all_nodes(model):
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or node.op_type)
        seen.add(node.name)


def _first_sizes(model: ir.Model) -> list[int | ir.SymbolicDim]:
    return [size for value in model.graph.inputs for size in list(value.shape or [])[:1]]


def _shapes(model: ir.Model, batch: int) -> dict[str, Sizes]:
    bound = bind_batch(model, batch)
    shapes = ((value.name or "", static_shape(value)) for value in all_values(bound))
    return {name: shape for name, shape in shapes if shape is not None}


def _moving(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that depend on the inputs or on chance."""
    moving = set(graph.inputs)
    for node in graph:
        if node.op_type in _RANDOM or any(value in moving for value in needs(node)):
            moving.update(node.outputs)
    return moving
