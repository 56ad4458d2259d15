"""Reads a quantized model into an event graph: one rule per operator, a reason for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from ...compiler.ir.walk import node_label
from .close import Closer
from .graph import EventGraph, Input, Output, Shape
from .ladders import Quantizer
from .operands import Refused
from .terms import Raw, Real, Soft, Sum, Term, Whole

_UNCOUNTED: Mapping[type, str] = {
    Raw: "the model's float input (quantize{inputs=int8} in --pipeline quantizes it)",
    Sum: "a sum that no quantizer made counts of",
    Soft: "a Softmax",
}

Rule: TypeAlias = "Callable[[Reader, ir.Node], None]"


class Reader:
    """What has been read so far; rules write into it.

    Attributes:
        terms: the meaning of every value that has one.
        closer: makes layers of sums.
    """

    def __init__(self, model: ir.Model) -> None:
        self.terms: dict[ir.Value, Term] = {}
        self.closer = Closer()
        self._inputs: dict[str, Input] = {}
        self._moving = set(model.graph.inputs)
        for value in model.graph.inputs:
            dtype = value.dtype.name if value.dtype is not None else "FLOAT"
            shape = sample_shape(value)
            self.terms[value] = Raw(value.name or "", shape, dtype, shape)

    def visit(self, node: ir.Node, rules: Mapping[tuple[str, str], Rule]) -> None:
        """Read a node unless it is constant; raises `Refused`."""
        if not any(value in self._moving for value in node.inputs):
            return
        self._moving.update(node.outputs)
        rule = rules.get((node.domain, node.op_type))
        if rule is None:
            raise Refused(node, f"no event layer computes {node.op_type}")
        rule(self, node)

    def is_constant(self, value: ir.Value | None) -> bool:
        """Tell whether a value does not depend on the inputs."""
        return value is not None and value not in self._moving

    def term(self, node: ir.Node, index: int = 0) -> Term:
        """Return what an input of a node means."""
        value = node.inputs[index]
        if value is None or value not in self.terms:
            raise Refused(node, f"input {index} is constant or missing")
        return self.terms[value]

    def counts(self, node: ir.Node, index: int = 0) -> Real:
        """Return an input that must be scaled counts."""
        found = self.term(node, index)
        if isinstance(found, Real):
            return found
        what = _UNCOUNTED.get(type(found), "integers")
        raise Refused(node, f"its input is {what}; events need quantized activations")

    def image(self, node: ir.Node, index: int = 0) -> Real:
        """Return an input that must be counts of an image as the population has it."""
        found = self.counts(node, index)
        own = self.closer.shape(found.population)
        if len(found.shape) != 3 or not _same_order(own, found.shape):
            raise Refused(node, f"needs an image of one sample, has shape {found.shape} of {own}")
        return found

    def open_input(self, raw: Raw, name: str, quantizer: Quantizer, scale: float | None) -> str:
        """Quantize a graph's input; returns the population."""
        entry = Input(
            raw.name, name, raw.shape, scale, quantizer.zero, quantizer.low, quantizer.high, raw.dtype,
            quantizer.by_quant, raw.fed, raw.axes,
        )  # fmt: skip
        self._inputs[name] = entry
        self.closer.add_population(name, raw.shape, (quantizer.low, quantizer.high))
        return name

    def finish(self, model: ir.Model) -> EventGraph:
        """Return the graph; raises `Refused` for outputs that are no layer's."""
        outputs = tuple(self._output(value) for value in model.graph.outputs)
        return EventGraph(tuple(self._inputs.values()), tuple(self.closer.layers), outputs)

    def _output(self, value: ir.Value) -> Output:
        term, maker, name = self.terms.get(value), value.producer(), value.name or ""
        if maker is None or term is None or isinstance(term, Raw):
            raise UnsupportedOp("event-output", f"output {name!r} is constant or an input", "leave it out")
        if isinstance(term, Soft):
            return replace(self._shown(term.of, term.name, maker, value), name=name, softmax=True)
        return self._shown(term, name, maker, value)

    def _shown(self, term: Term, name: str, maker: ir.Node, value: ir.Value) -> Output:
        if isinstance(term, Raw | Soft):
            raise Refused(maker, "its result leaves the network as it is")
        if isinstance(term, Sum):
            layer = self.closer.readout(term, name, maker)
            return Output(name, layer, term.shape)
        if term.population in self._inputs:
            raise Refused(maker, "an output shows an input")
        if isinstance(term, Whole):
            dtype = value.dtype.name if value.dtype is not None else "UINT8"
            return Output(name, term.population, term.shape, dtype, term.zero)
        return Output(name, term.population, term.shape)


def read(model: ir.Model) -> EventGraph:
    """Return the event graph of a quantized model, which is not edited.

    Raises:
        UnsupportedOp: `event-unsupported`, with the first node that nothing takes and why.
    """
    from .rules import RULES

    reader = Reader(model)
    try:
        for node in model.graph:
            reader.visit(node, RULES)
        return reader.finish(model)
    except Refused as refusal:
        raise UnsupportedOp(
            "event-unsupported",
            f"event: {node_label(refusal.node)}: {refusal.reason}",
            "quantize weights and activations (--precision int8 or w4a4), or use target cpu",
        ) from refusal


def sample_shape(value: ir.Value) -> Shape:
    """Return the shape of a value without its batch."""
    sizes = list(value.shape or [])[1:]
    if not all(isinstance(size, int) for size in sizes) or not sizes:
        raise UnsupportedOp(
            "event-shape",
            f"value {value.name!r} has shape {value.shape}; events need fixed sizes behind the batch",
            "give the sizes with --shape",
        )
    return tuple(int(size) for size in sizes if isinstance(size, int))


def _same_order(own: Shape, viewed: Shape) -> bool:
    """Tell whether two shapes list the same elements in the same places of an image."""
    return [size for size in own if size != 1] == [size for size in viewed if size != 1] or own == viewed
