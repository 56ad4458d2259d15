"""A quantized model as integers between two float ends: what every FPGA road stands on.

    network = read_network(model)        # read.py; raises UnsupportedOp naming node and limit
    codes = simulate(network, {"x": q})  # simulate.py: the golden integers of every wire, batched NumPy

`head` turns the model's inputs into the integers that enter the circuit, `tail` turns the integers that
leave it into the model's outputs; both run on the host. In between there are only integers. What the
integers of a wire stand for: `real = unit * (q - zero) + offset`. Shapes are without the
batch axis, which a circuit does not have.

Every requantization, whatever float arithmetic the model writes it in (QDQ of any scale, BatchNorm, Relu,
Quant, BipolarQuant, MultiThreshold), is a table of integer thresholds found with the reference's own
arithmetic: `q = start + step * #{k : sign * acc >= thresholds[k]}`. Power-of-two scales
are the case where a shift and a rounding
do the same; `requantize.py` finds the cheapest circuit that is equal for every accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Wire:
    """One integer tensor.

    Attributes:
        name: the ONNX value that it stands for.
        shape: without the batch axis.
        low, high: proven bounds of q, int64, broadcastable to `shape` (() or one per channel).
        unit, offset: `real = unit * (q - zero) + offset`, float64, broadcastable to `shape`.
        zero: the q of real `offset`; padding with the real 0 is padding with `zero`.
        step: every q is `low + step * k` (2 for bipolar values -1 and +1), per-tensor bounds where it is
            not 1.
    """

    name: str
    shape: tuple[int, ...]
    low: Ints
    high: Ints
    unit: Floats
    offset: Floats
    zero: int = 0
    step: int = 1

    @property
    def least(self) -> int:
        """Lowest q of the tensor."""
        return int(self.low.min())

    @property
    def most(self) -> int:
        """Highest q of the tensor."""
        return int(self.high.max())

    @property
    def signed(self) -> bool:
        """Whether some q is negative."""
        return self.least < 0

    @property
    def bits(self) -> int:
        """Two's complement bits that hold every q, without a sign bit where none is negative."""
        magnitude = max(self.most, -self.least - 1, 1)
        return magnitude.bit_length() + self.signed

    @property
    def exponent(self) -> int | None:
        """E where the unit is 2**e everywhere and there is no offset, else None."""
        mantissa, exponent = np.frexp(self.unit)
        same = bool(np.all(mantissa == 0.5)) and np.unique(exponent).size == 1 and not self.offset.any()
        return int(exponent.reshape(-1)[0]) - 1 if same else None

    @property
    def power_of_two(self) -> bool:
        """Whether every unit is a power of two, so that float arithmetic on it is exact."""
        return bool(np.all(np.frexp(self.unit)[0] == 0.5))


@dataclass(frozen=True, eq=False)
class Dense:
    """`acc[o] = sum_i weights[o, i] * (q[i] - zero)`; the bias is part of what reads it."""

    name: str
    inputs: tuple[str, ...]
    output: Wire
    weights: Ints  # [out, in]


@dataclass(frozen=True, eq=False)
class Conv:
    """`acc = conv(q - zero, weights)`, channels first, padding adds nothing.

    Attributes:
        weights: [out, in / group, *kernel]; 1 or 2 spatial axes.
        pads: begin of each spatial axis, then ends, as in ONNX.
    """

    name: str
    inputs: tuple[str, ...]
    output: Wire
    weights: Ints
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Largest q, or sum of q - zero, of each window; a window of sum never reaches over the edge."""

    name: str
    inputs: tuple[str, ...]
    output: Wire
    kind: Literal["max", "sum"]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Mix:
    """`acc = sum_i factors[i] * (q_i - zero_i)`: a residual sum of wires with different units."""

    name: str
    inputs: tuple[str, ...]
    output: Wire
    factors: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Move:
    """Reorders without arithmetic: `output.reshape(-1) = concat(inputs, each flat)[order]`."""

    name: str
    inputs: tuple[str, ...]
    output: Wire
    order: Ints


@dataclass(frozen=True, eq=False)
class Requant:
    """`q = start + output.step * #{k : sign[c] * acc >= thresholds[c, k]}`, ascending thresholds.

    Attributes:
        thresholds: [C, levels]; C is 1 or the size of the channel axis.
        sign: [C], +1 or -1.
        axis: of the channels in `output.shape`; None where C is 1.
        start: the lowest q.
        unproven: thresholds where float rounding inside the reference might decide otherwise for single
            values; 0 for QDQ layers and power-of-two units.
    """

    name: str
    inputs: tuple[str, ...]
    output: Wire
    thresholds: Ints
    sign: Ints
    axis: int | None
    start: int
    unproven: int = 0


Layer: TypeAlias = Dense | Conv | Pool | Mix | Move | Requant


@dataclass(frozen=True, eq=False)
class Network:
    """A model cut in three.

    Attributes:
        inputs: integers that enter, in order; `head` has one output per input, of the same name.
        outputs: names of wires that leave; `tail` has one input per output, of the same name, which takes
            the real.
        layers: in running order.
        wires: by name, inputs included.
        head: host model from the inputs to what is quantized first; its outputs are the reals (or, from a
            QuantizeLinear, the integers) of `inputs`.
        tail: host model from reals of `outputs` to the model's outputs.
    """

    inputs: tuple[Wire, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    wires: dict[str, Wire]
    head: ir.Model
    tail: ir.Model
