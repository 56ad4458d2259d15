"""Integer layers to hls4ml layers: one rule each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ....compiler.errors import UnsupportedOp
from ..graph import Conv, Dense, Ints, Layer, Mix, Move, Network, Pool, Requant, Wire
from .affine import Rows, code_chain, find_chain, rising
from .formats import Affine, Format, holding
from .plan import Attribute, Plan, Port, Step, last_order, last_shape
from .tables import KIND

_ONE_AXIS, _TWO_AXES, _PAIR = 1, 2, 2


@dataclass(frozen=True, eq=False)
class _Signal:
    """What stands for a wire: a step, and where its elements lie in the wire's (see plan.Port)."""

    step: str
    order: Ints


def make_plan(network: Network, *, depthwise: bool = True) -> Plan:
    """Return a network as hls4ml layers.

    Args:
        network: of the front.
        depthwise: whether hls4ml's backend has depthwise convolutions; else they get zeros for the others.

    Raises:
        UnsupportedOp: `fpga-hls-layer`: what hls4ml's layers cannot be, naming the node.
    """
    return _Builder(network, depthwise).build()


class _Builder:
    def __init__(self, network: Network, depthwise: bool) -> None:
        self._network, self._depthwise = network, depthwise
        self._steps: dict[str, Step] = {}
        self._signals: dict[str, _Signal] = {}
        readers = Counter(name for layer in network.layers for name in layer.inputs)
        readers.update(network.outputs)
        self._readers = readers

    def build(self) -> Plan:
        inputs = tuple(self._input(wire) for wire in self._network.inputs)
        for layer in self._network.layers:
            step, order = self._rules[type(layer)](self, layer)
            self._signals[layer.output.name] = _Signal(step, order)
        outputs = tuple(self._port(self._network.wires[name]) for name in self._network.outputs)
        taken = {port.step for port in inputs}
        if any(port.step in taken for port in outputs) or len({p.step for p in outputs}) < len(outputs):
            raise UnsupportedOp(
                "fpga-hls-layer", "an output is an input, or another output", "remove one of them"
            )
        return Plan(tuple(self._steps.values()), inputs, outputs)

    def _port(self, wire: Wire) -> Port:
        signal = self._signals[wire.name]
        return Port(wire, signal.step, signal.order)

    def _input(self, wire: Wire) -> Port:
        form = _format(wire)
        step = self._add("InputLayer", (), form, {"input_shape": last_shape(wire.shape)}, wire=wire.name)
        self._signals[wire.name] = _Signal(step, last_order(wire.shape))
        return self._port(wire)

    def _add(
        self, kind: str, inputs: tuple[str, ...], output: Format, attributes: Mapping[str, Attribute],
        types: Mapping[str, Format] | None = None, product: tuple[int, int] | None = None,
        layer: Layer | None = None, wire: str = "",
    ) -> str:  # fmt: skip
        name = f"l{len(self._steps)}_{kind.lower()}"
        source = layer.name if layer is not None else ""
        self._steps[name] = Step(
            name, kind, inputs, output, attributes, types or {}, product, source, wire
        )  # fmt: skip
        return name

    def _dense(self, layer: Layer) -> tuple[str, Ints]:
        assert isinstance(layer, Dense)
        signal = self._signals[layer.inputs[0]]
        weights = np.ascontiguousarray(layer.weights[:, signal.order].T)
        n_in, n_out = weights.shape
        attributes: dict[str, Attribute] = {
            "n_in": n_in, "n_out": n_out, "weight_data": weights, "bias_data": np.zeros(n_out, np.int64),
        }  # fmt: skip
        form, source = _format(layer.output), signal.step
        types = {"weight": _holding(weights), "bias": holding(0, 1), "accum": form}
        name = layer.output.name
        step = self._add("Dense", (source,), form, attributes, types, (n_in, n_out), layer, name)
        return step, np.arange(n_out, dtype=np.int64)

    def _conv(self, layer: Layer) -> tuple[str, Ints]:
        assert isinstance(layer, Conv)
        wire = self._network.wires[layer.inputs[0]]
        self._check_layout(layer, wire)
        if any(d != 1 for d in layer.dilations):
            raise _no_layer(layer, f"dilations {layer.dilations}", "use dilation 1")
        kernel = tuple(int(n) for n in layer.weights.shape[2:])
        shapes = wire.shape, layer.output.shape
        window = _window(*shapes, kernel, layer.strides, layer.pads)
        deep = layer.group == wire.shape[0] == layer.weights.shape[0] and layer.weights.shape[1] == 1
        parts = self._convolution(layer.weights, layer.group, deep)
        form, name = _format(layer.output), layer.output.name
        source = self._signals[wire.name].step
        return self._convolved(source, layer, window, parts, form, name), last_order(layer.output.shape)

    def _convolution(self, weights: Ints, group: int, deep: bool) -> tuple[bool, Ints]:
        """Return whether a layer becomes a depthwise one, and its weights with the channels last."""
        if deep and self._depthwise:
            return True, np.ascontiguousarray(np.moveaxis(weights, (0, 1), (-2, -1)))
        return False, np.ascontiguousarray(np.moveaxis(_ungrouped(weights, group), (0, 1), (-1, -2)))

    def _convolved(
        self, source: str, layer: Layer, window: Mapping[str, Attribute], parts: tuple[bool, Ints],
        form: Format, wire: str,
    ) -> str:  # fmt: skip
        """Add a convolution without bias; the accumulator's proven range holds partial sums in any order."""
        deep, weights = parts
        *kernel, inputs, outputs = (int(n) for n in weights.shape)
        filters = inputs if deep else outputs
        attributes = {
            **window, "n_chan": inputs, "n_filt": filters, "depth_multiplier": 1,
            "depthwise_data" if deep else "weight_data": weights, "bias_data": np.zeros(filters, np.int64),
        }  # fmt: skip
        types = {"weight": _holding(weights), "bias": holding(0, 1), "accum": form}
        product = (int(np.prod(kernel)) * (1 if deep else inputs), filters)
        kind = f"{'Depthwise' if deep else ''}Conv{len(kernel)}D"
        return self._add(kind, (source,), form, attributes, types, product, layer, wire)

    def _check_layout(self, layer: Layer, wire: Wire) -> None:
        """Refuse data whose elements do not lie channels last, as a Reshape into an image may leave them."""
        if not np.array_equal(self._signals[wire.name].order, last_order(wire.shape)):
            raise _no_layer(
                layer, "reads an image that a reshape made of other axes", "feed the image itself"
            )

    def _pool(self, layer: Layer) -> tuple[str, Ints]:
        assert isinstance(layer, Pool)
        wire = self._network.wires[layer.inputs[0]]
        self._check_layout(layer, wire)
        window = _window(wire.shape, layer.output.shape, layer.kernel, layer.strides, layer.pads)
        channels, order = wire.shape[0], last_order(layer.output.shape)
        if layer.kind == "sum":
            return self._sum_pool(layer, wire), order
        source, form = self._signals[wire.name].step, _format(wire)
        if any(layer.pads) and not form.signed:  # hls4ml's padding of unsigned data is its largest number
            form = holding(-1, form.most)
            source = self._affine(source, _identity(form), wire, np.arange(channels), layer)
        attributes = {**window, "n_filt": channels, "pool_op": "Max"}
        if len(layer.kernel) == _ONE_AXIS:
            attributes |= {"n_in": wire.shape[1], "n_out": layer.output.shape[1]}
        name = f"MaxPooling{len(layer.kernel)}D"
        types = {"accum": form}
        step = self._add(name, (source,), form, attributes, types, None, layer, layer.output.name)
        return step, order

    def _sum_pool(self, layer: Pool, wire: Wire) -> str:
        """Add a convolution with ones (hls4ml's average divides and rounds), along one axis after the other.

        Two axes at once where windows overlap.
        """
        axes, shape = len(layer.kernel), wire.shape
        source = self._signals[wire.name].step
        single = all(n == 1 for n in layer.output.shape[1:])
        strides = layer.kernel if single else layer.strides
        apart = axes == _TWO_AXES and strides == layer.kernel
        masks = ((True, False), (False, True)) if apart else ((True,) * axes,)
        for i, mask in enumerate(masks):
            kernel, steps = (
                tuple(k if on else 1 for k, on in zip(sizes, mask, strict=True))
                for sizes in (layer.kernel, strides)
            )
            sizes = zip(shape[1:], kernel, steps, strict=True)
            result = (shape[0], *((n - k) // s + 1 for n, k, s in sizes))
            last = i == len(masks) - 1
            count = int(np.prod(layer.kernel if last else kernel))
            form = holding(*(count * (end - wire.zero) for end in (wire.least, wire.most)))
            ones = np.ones((shape[0], 1, *kernel), np.int64)
            parts = self._convolution(ones, shape[0], deep=True)
            window = _window(shape, result, kernel, steps, (0,) * 2 * axes)
            source = self._convolved(source, layer, window, parts, form, layer.output.name if last else "")
            shape = result
        return source

    def _mix(self, layer: Layer) -> tuple[str, Ints]:
        assert isinstance(layer, Mix)
        signals = [self._signals[name] for name in layer.inputs]
        same = all(np.array_equal(signal.order, signals[0].order) for signal in signals)
        if len(signals) != _PAIR or not same:
            raise _no_layer(layer, "sums other than two tensors of one layout", "sum two at a time")
        steps = []
        for name, factor in zip(layer.inputs, layer.factors, strict=True):
            wire = self._network.wires[name]
            steps.append(self._scaled(wire, factor, layer))
        form = _format(layer.output)
        step = self._add("Merge", tuple(steps), form, {"op": "Add"}, None, None, layer, layer.output.name)
        return step, signals[0].order

    def _scaled(self, wire: Wire, factor: int, layer: Layer) -> str:
        source = self._signals[wire.name].step
        if factor == 1:
            return source
        ends = factor * (wire.least - wire.zero), factor * (wire.most - wire.zero)
        one = Affine(np.full(1, factor), np.zeros(1, np.int64), 0, holding(min(ends), max(ends)))
        return self._affine(source, one, wire, np.zeros(1, np.int64), layer)

    def _move(self, layer: Layer) -> tuple[str, Ints]:
        assert isinstance(layer, Move)
        if len(layer.inputs) != 1:
            raise _no_layer(layer, "joins tensors", "use a target of the RTL road")
        signal = self._signals[layer.inputs[0]]
        place = np.empty_like(layer.order)
        place[layer.order] = np.arange(layer.order.size)
        source = self._network.wires[layer.inputs[0]]
        step = signal.step
        if last_shape(source.shape) != last_shape(layer.output.shape):
            attributes: dict[str, Attribute] = {"target_shape": last_shape(layer.output.shape)}
            form = self._steps[step].output
            step = self._add("Reshape", (step,), form, attributes, None, None, layer, layer.output.name)
        return step, place[signal.order]

    def _requant(self, layer: Layer) -> tuple[str, Ints]:
        assert isinstance(layer, Requant)
        wire, signal = self._network.wires[layer.inputs[0]], self._signals[layer.inputs[0]]
        if layer.axis not in (None, 0):
            raise _no_layer(layer, f"thresholds along axis {layer.axis}", "quantize per channel")
        channel = signal.order if len(wire.shape) == 1 else np.arange(wire.shape[0])
        step, rows = signal.step, _rows(layer, wire)
        chain = find_chain(rows)
        if chain is None:
            step = self._counted(step, rows, wire, channel, layer)
            chain = code_chain(rows)
        elif self._is_fused(chain[0], wire):
            self._steps[step] = _fused(self._steps[step], chain.pop(0), channel)
        for one in chain:
            step = self._affine(step, one, wire, channel, layer)
        self._steps[step] = replace(self._steps[step], wire=layer.output.name)
        return step, signal.order

    def _counted(self, source: str, rows: Rows, wire: Wire, channel: Ints, layer: Layer) -> str:
        """Add a table of thresholds; unused places hold what no number reaches."""
        bits = rows.levels.bit_length()
        table = rising(rows)
        never = max(int(rows.high.max()), int(table.max()), 0) + 1
        table = np.pad(table, ((0, 0), (0, (1 << bits) - rows.levels)), constant_values=never)
        table = table if len(table) == 1 else np.ascontiguousarray(table[channel])
        attributes: dict[str, Attribute] = {
            "n_in": int(np.prod(wire.shape, dtype=np.int64)), "n_filt": len(table), "bits": bits,
            "threshold_data": table,
        }  # fmt: skip
        count = holding(0, rows.levels)
        return self._add(KIND, (source,), count, attributes, {"threshold": _holding(table)}, None, layer)

    def _is_fused(self, first: Affine, wire: Wire) -> bool:
        """Say whether the layer's own result type does the rounding: a power of two, read once."""
        step = self._steps[self._signals[wire.name].step]
        same = step.wire == wire.name and "weight" in step.types
        return same and self._readers[wire.name] == 1 and bool((first.scale == 1).all())

    def _affine(self, source: str, one: Affine, wire: Wire, channel: Ints, layer: Layer) -> str:
        """Add a constant multiplication; `channel` orders per-channel constants as the data lie."""
        scale, bias = (a if a.size == 1 else a[channel] for a in (one.scale, one.bias))
        if one.is_identity:  # an ApplyAlpha of 1 and 0 would be optimized away, and its type with it
            linear: dict[str, Attribute] = {"activation": "linear", "n_in": int(np.prod(wire.shape))}
            return self._add("Activation", (source,), one.result, linear, None, None, layer)
        count = max(scale.size, bias.size)
        scale, bias = (np.ascontiguousarray(np.broadcast_to(a, (count,))) for a in (scale, bias))
        attributes: dict[str, Attribute] = {
            "n_in": int(np.prod(wire.shape, dtype=np.int64)), "n_filt": count,
            "scale_data": scale / 2.0**one.shift, "bias_data": bias / 2.0**one.shift,
        }  # fmt: skip
        types = {
            name: holding(int(a.min()), int(a.max()), one.shift)
            for name, a in (("scale", scale), ("bias", bias))
        }
        return self._add("ApplyAlpha", (source,), one.result, attributes, types, None, layer)

    _rules: Mapping[type[Layer], Callable[[_Builder, Layer], tuple[str, Ints]]] = {
        Dense: _dense,
        Conv: _conv,
        Pool: _pool,
        Mix: _mix,
        Move: _move,
        Requant: _requant,
    }


def _window(
    shape: tuple[int, ...], result: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...],
    pads: tuple[int, ...],
) -> dict[str, Attribute]:  # fmt: skip
    """Return what hls4ml wants to know about a sliding window."""
    axes = len(kernel)
    sides = ("width",) if axes == _ONE_AXIS else ("height", "width")
    ends = (("left", "right"),) if axes == _ONE_AXIS else (("top", "bottom"), ("left", "right"))
    found: dict[str, Attribute] = {
        "data_format": "channels_last",
        "padding": "same" if any(pads) else "valid",
    }
    for i, side in enumerate(sides):
        found[f"in_{side}"], found[f"out_{side}"] = shape[1 + i], result[1 + i]
        found[f"filt_{side}"] = found[f"pool_{side}"] = kernel[i]
        found[f"stride_{side}"] = strides[i]
        found[f"pad_{ends[i][0]}"], found[f"pad_{ends[i][1]}"] = pads[i], pads[i + axes]
    return found


def _format(wire: Wire) -> Format:
    """Return the type of `q - zero`."""
    return holding(wire.least - wire.zero, wire.most - wire.zero)


def _identity(result: Format) -> Affine:
    return Affine(np.ones(1, np.int64), np.zeros(1, np.int64), 0, result)


def _holding(array: Ints) -> Format:
    return holding(int(array.min()), int(array.max()))


def _ungrouped(weights: Ints, group: int) -> Ints:
    """Return a grouped convolution's weights as those of one group, zeros elsewhere."""
    out, depth, *kernel = weights.shape
    full = np.zeros((out, depth * group, *kernel), np.int64)
    share = out // group
    for g in range(group):
        rows = slice(g * share, (g + 1) * share)
        full[rows, g * depth : (g + 1) * depth] = weights[rows]
    return full


def _rows(layer: Requant, wire: Wire) -> Rows:
    count = len(layer.sign)
    ends = []
    for bound, pick in ((wire.low, np.min), (wire.high, np.max)):
        spread = np.broadcast_to(bound, wire.shape).reshape(wire.shape[0] if wire.shape else 1, -1)
        own = pick(spread, axis=1) - wire.zero
        ends.append(own if count > 1 else pick(own, keepdims=True))
    moved = layer.thresholds - layer.sign[:, None] * wire.zero
    start = layer.start - layer.output.zero
    return Rows(moved, layer.sign, ends[0], ends[1], start, layer.output.step)


def _fused(step: Step, one: Affine, channel: Ints) -> Step:
    """Return a weighted layer that shifts, adds and rounds in its own result."""
    bias = one.bias if one.bias.size == 1 else one.bias[channel]
    count = len(np.asarray(step.attributes["bias_data"]))
    bias = np.broadcast_to(bias, (count,))
    accum = step.types["accum"]
    low, high = accum.least + min(int(bias.min()), 0), accum.most + max(int(bias.max()), 0)
    name = "depthwise_data" if "depthwise_data" in step.attributes else "weight_data"
    attributes = {
        **step.attributes,
        name: np.asarray(step.attributes[name]) / 2.0**one.shift,
        "bias_data": bias / 2.0**one.shift,
    }
    types = {
        "weight": replace(step.types["weight"], fraction=one.shift),
        "bias": holding(int(bias.min()), int(bias.max()), one.shift),
        "accum": holding(low, high, one.shift),
    }
    return replace(step, attributes=attributes, types=types, output=one.result)


def _no_layer(layer: Layer, finding: str, way_out: str) -> UnsupportedOp:
    return UnsupportedOp("fpga-hls-layer", f"node {layer.name!r}: {finding}, which hls4ml has not", way_out)
