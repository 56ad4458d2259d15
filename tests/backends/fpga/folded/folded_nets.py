"""Integer networks for the engine of shared multipliers, written layer by layer, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pared.backends.fpga.folded.folding import Design, needs_of
from pared.backends.fpga.folded.image import image_of
from pared.backends.fpga.folded.program import Folding, lines_of, program_of, weight_bits
from pared.backends.fpga.folded.rtl import files_of
from pared.backends.fpga.folded.simulation import Simulated, simulate_engine
from pared.backends.fpga.folded.tasks import tasks_of
from pared.backends.fpga.graph import Conv, Dense, Ints, Layer, Mix, Move, Network, Pool, Requant, Wire


class Net:
    """Builds a network; every method appends a layer and returns its wire."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.layers: list[Layer] = []
        self.inputs: list[Wire] = []

    def input(
        self, shape: tuple[int, ...], low: int = -8, high: int = 7, zero: int = 0, step: int = 1
    ) -> Wire:
        """Add an input."""
        wire = _wire(f"x{len(self.inputs)}", shape, low, high, zero, step)
        self.inputs.append(wire)
        return wire

    def dense(self, x: Wire, outputs: int, most: int = 7) -> Wire:
        """Add a dense layer of random weights."""
        weights = self.rng.integers(-most, most + 1, (outputs, x.shape[0]))
        wire = self._sum(x, (outputs,), weights)
        return self._add(Dense(f"dense{len(self.layers)}", (x.name,), wire, weights))

    def conv(
        self, x: Wire, outputs: int, kernel: tuple[int, ...], *, strides: int = 1, pads: Sequence[int] = (),
        dilation: int = 1, group: int = 1, most: int = 7,
    ) -> Wire:  # fmt: skip
        """Add a convolution of random weights."""
        rank = len(kernel)
        edges = tuple(pads) or (0,) * (2 * rank)
        weights = self.rng.integers(-most, most + 1, (outputs, x.shape[0] // group, *kernel))
        reach = [(k - 1) * dilation + 1 for k in kernel]
        out = [(n + edges[i] + edges[i + rank] - reach[i]) // strides + 1 for i, n in enumerate(x.shape[1:])]
        wire = self._sum(x, (outputs, *out), weights.reshape(outputs, -1))
        how = (strides,) * rank, edges, (dilation,) * rank
        return self._add(Conv(f"conv{len(self.layers)}", (x.name,), wire, weights, *how, group))

    def pool(
        self, x: Wire, kind: str, kernel: tuple[int, ...], strides: int, pads: Sequence[int] = ()
    ) -> Wire:
        """Add a pooling layer."""
        rank = len(kernel)
        edges = tuple(pads) or (0,) * (2 * rank)
        out = [(n + edges[i] + edges[i + rank] - kernel[i]) // strides + 1 for i, n in enumerate(x.shape[1:])]
        name, count = f"pool{len(self.layers)}", int(np.prod(kernel))
        ends = (
            (x.least, x.most, x.zero)
            if kind == "max"
            else ((x.least - x.zero) * count, (x.most - x.zero) * count, 0)
        )
        wire = _wire(name, (x.shape[0], *out), *ends)
        assert kind in ("max", "sum"), kind
        layer = Pool(
            name, (x.name,), wire, "max" if kind == "max" else "sum", kernel, (strides,) * rank, edges
        )
        return self._add(layer)

    def mix(self, a: Wire, b: Wire, factors: tuple[int, int]) -> Wire:
        """Add a weighted sum."""
        ends = [
            sum(
                f * ((w.most if (f > 0) == up else w.least) - w.zero)
                for f, w in zip(factors, (a, b), strict=True)
            )
            for up in (False, True)
        ]
        name = f"mix{len(self.layers)}"
        return self._add(Mix(name, (a.name, b.name), _wire(name, a.shape, *ends), factors))

    def move(self, x: Wire, order: Ints, shape: tuple[int, ...]) -> Wire:
        """Reorder."""
        name = f"move{len(self.layers)}"
        return self._add(Move(name, (x.name,), _wire(name, shape, x.least, x.most, x.zero, x.step), order))

    def flat(self, x: Wire) -> Wire:
        """Flatten in ONNX' order."""
        size = int(np.prod(x.shape))
        return self.move(x, np.arange(size), (size,))

    def quant(
        self, x: Wire, levels: int, *, start: int = 0, zero: int = 0, step: int = 1, channels: bool = True,
        falling: bool = False, kind: str = "line",
    ) -> Wire:  # fmt: skip
        """Add a quantizer: thresholds on a `line`, rounding half to even (`even`), `rough`, or a `curve`."""
        rows = x.shape[0] if channels else 1
        sign = self.rng.choice([-1, 1], rows) if falling else np.ones(rows, np.int64)
        low = np.where(sign > 0, x.least, -x.most)
        span = x.most - x.least
        thresholds = np.stack([self._thresholds(int(a), span, levels, kind) for a in low])
        name = f"quant{len(self.layers)}"
        wire = _wire(name, x.shape, start, start + step * levels, zero, step)
        axis = 0 if channels else None
        return self._add(Requant(name, (x.name,), wire, thresholds, sign.astype(np.int64), axis, start))

    def _thresholds(self, low: int, span: int, levels: int, kind: str) -> Ints:
        k = np.arange(levels)
        if kind == "even":
            shift = max(int(np.log2(max(span // (levels + 2), 2))), 1)
            return np.asarray(low + (span >> 2) + (k << shift) + (k % 2), np.int64)
        begin, end = low + self.rng.uniform(0, 0.4) * span, low + self.rng.uniform(0.6, 1) * span
        if kind == "curve":
            return low + span * k**3 // levels**3
        exact = np.ceil(begin + (end - begin) * k / max(levels, 1)).astype(np.int64)
        if kind == "rough":
            exact = np.sort(
                exact + self.rng.integers(-1, 2, levels) * max(int(end - begin) // (levels * 4), 1)
            )
        return np.asarray(exact, np.int64)

    def _sum(self, x: Wire, shape: tuple[int, ...], rows: Ints) -> Wire:
        low, high = min(x.least - x.zero, 0), max(x.most - x.zero, 0)
        up, down = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
        column = (-1, *[1] * (len(shape) - 1))
        ends = (up * low + down * high).reshape(column), (up * high + down * low).reshape(column)
        one, none = np.ones(()), np.zeros(())
        return Wire(f"sum{len(self.layers)}", shape, ends[0], ends[1], one, none)

    def _add(self, layer: Layer) -> Wire:
        self.layers.append(layer)
        return layer.output

    def network(self, *outputs: Wire) -> Network:
        """Return the network; host ends are empty."""
        wires = {w.name: w for w in (*self.inputs, *(layer.output for layer in self.layers))}
        empty = ir.Model(ir.Graph([], [], nodes=[], name="empty", opset_imports={"": 21}), ir_version=10)
        return Network(
            tuple(self.inputs), tuple(w.name for w in outputs), tuple(self.layers), wires, empty, empty
        )


def _wire(name: str, shape: tuple[int, ...], low: int, high: int, zero: int = 0, step: int = 1) -> Wire:
    return Wire(name, shape, np.asarray(low), np.asarray(high), np.ones(()), np.zeros(()), zero, step)


def codes_of(network: Network, count: int, seed: int = 0) -> dict[str, Ints]:
    """Return random integers of the inputs."""
    rng = np.random.default_rng(seed)
    return {
        w.name: w.least + w.step * rng.integers(0, (w.most - w.least) // w.step + 1, (count, *w.shape))
        for w in network.inputs
    }


def design_of(network: Network, lanes: int, units: int) -> Design:
    """Return the design of a folding, whatever it needs."""
    tasks = tasks_of(network)
    bits = weight_bits(tasks)
    program = program_of(tasks, lines_of(tasks), Folding(lanes, units), bits)
    image = image_of(program, bits)
    return Design(program, image, needs_of(program, image))


def simulated(
    network: Network, lanes: int, units: int, codes: dict[str, Ints], *, gaps: bool = False
) -> Simulated:
    """Return what the Verilog of a folding gives, by Icarus."""
    design = design_of(network, lanes, units)
    files = files_of(design.program, design.image)
    return simulate_engine(design.program, design.image, files, codes, "iverilog", gaps=gaps)
