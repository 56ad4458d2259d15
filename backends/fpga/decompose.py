"""Small truth tables as networks of 4-input tables, by functional decomposition.

Ashenhurst and Curtis: inputs S of a function may be replaced by a code of the columns that they select,
`f(x) = g(code(x_S), rest)`, which pays where few columns differ. Sums of few small weights are like that:
what matters of two inputs is their partial sum, as far as the thresholds can tell. What cannot be reduced so
is split at one input into two functions (Shannon).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]

_LUT = 4
_SIZES = (4, 3, 2)


@dataclass(frozen=True)
class Node:
    """One wire: bit `inputs[k]` (wire numbers) of the index k into `table`, whose bit i is the value at i.

    Attributes:
        inputs: 0..n-1 are the function's inputs, then nodes in order.
        table: 2^len(inputs) bits.
    """

    inputs: tuple[int, ...]
    table: int


@dataclass(frozen=True)
class Logic:
    """A network of tables.

    Attributes:
        inputs: how many.
        nodes: each stands behind what it reads; wire `inputs + k` is node k.
        outputs: wires.
        codes: wires that stand for several inputs. Synthesis had better leave them: it would look through
            them for depth and lose what they save.
    """

    inputs: int
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    codes: frozenset[int]

    @property
    def luts(self) -> int:
        """Tables of four inputs; a selection between two (three inputs) costs none in a slice of an ECP5."""
        return sum(len(node.inputs) != 3 or node.table != _SELECT for node in self.nodes)

    @property
    def levels(self) -> int:
        """Tables in the longest path."""
        depth = [0] * self.inputs
        for node in self.nodes:
            depth.append(1 + max((depth[w] for w in node.inputs), default=0))
        return max((depth[w] for w in self.outputs), default=0)

    def evaluate(self) -> Bits:
        """Return the truth table, [2^inputs, outputs]."""
        index = np.arange(1 << self.inputs)
        wires = [(index >> k) & 1 for k in range(self.inputs)]
        for node in self.nodes:
            place = sum((wires[w] << k for k, w in enumerate(node.inputs)), np.zeros_like(index))
            wires.append((node.table >> place.astype(object) & 1).astype(np.int64))
        return np.stack([wires[w] for w in self.outputs], axis=1).astype(np.uint8)


_SELECT = 0b11001010  # inputs 0: when 0, 1: when 1, 2: which


def decompose(table: Bits) -> Logic:
    """Return logic of a truth table [2^n, outputs]; bit k of the row number is input k."""
    builder = _Builder(table.shape[0].bit_length() - 1)
    outputs = builder.build(table.astype(np.uint8), tuple(range(builder.count)))
    logic = Logic(builder.count, tuple(builder.nodes), outputs, frozenset(builder.codes))
    assert np.array_equal(logic.evaluate(), table), "decomposition changed the function"
    return logic


class _Builder:
    def __init__(self, inputs: int) -> None:
        self.count = inputs
        self.nodes: list[Node] = []
        self.codes: set[int] = set()
        self._known: dict[Node, int] = {}

    def _add(self, inputs: tuple[int, ...], column: Bits) -> int:
        """Return the wire of a function of at most four wires."""
        rest = [k for k in range(len(inputs)) if _depends(column[:, None], k)]
        if len(rest) < len(inputs):
            column = _free(column[:, None], [k for k in range(len(inputs)) if k not in rest])[:, 0]
        if len(rest) == 1 and not column[0]:
            return inputs[rest[0]]
        node = Node(tuple(inputs[k] for k in rest), _number(column))
        if node not in self._known:
            self._known[node] = self.count + len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def build(self, table: Bits, wires: tuple[int, ...]) -> tuple[int, ...]:
        """Return the wires of all columns of `table`, whose inputs are `wires`."""
        idle = [k for k in range(len(wires)) if not _depends(table, k)]
        table, wires = _free(table, idle), tuple(w for k, w in enumerate(wires) if k not in idle)
        if len(wires) <= _LUT:
            return tuple(self._add(wires, column) for column in table.T)
        found = _best(table, len(wires))
        if found is not None:
            return self._encoded(table, wires, found)
        if table.shape[1] > 1:
            return tuple(self.build(column[:, None], wires)[0] for column in table.T)
        half = len(table) // 2
        low, high = (self.build(part, wires[:-1])[0] for part in (table[:half], table[half:]))
        return (self._select(low, high, wires[-1]),)

    def _select(self, low: int, high: int, which: int) -> int:
        if low == high:
            return low
        index = np.arange(8)
        column = np.where(index & 4, index >> 1 & 1, index & 1).astype(np.uint8)
        return self._add((low, high, which), column)

    def _encoded(self, table: Bits, wires: tuple[int, ...], chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Replace the inputs `chosen` by a code of the columns that they select."""
        columns = _columns(table, len(wires), chosen)
        unique, which = np.unique(columns, axis=0, return_inverse=True)
        bits = (len(unique) - 1).bit_length()
        inside = tuple(wires[k] for k in chosen)
        codes = tuple(self._add(inside, (which.reshape(-1) >> b & 1).astype(np.uint8)) for b in range(bits))
        self.codes.update(w for w in codes if w >= self.count)
        # codes that never occur behave like the last one
        filled = unique[np.minimum(np.arange(1 << bits), len(unique) - 1)]
        rest = tuple(w for k, w in enumerate(wires) if k not in chosen)
        smaller = filled.reshape(1 << bits, -1, table.shape[1]).swapaxes(0, 1).reshape(-1, table.shape[1])
        return self.build(smaller, (*codes, *rest))


def _best(table: Bits, inputs: int) -> tuple[int, ...] | None:
    """Return the inputs that are worth a code: fewest tables with what remains, split one by one."""

    def remaining(n: int) -> int:
        return int(table.shape[1]) << max(n - _LUT, 0)

    best, found = remaining(inputs), None
    for size in _SIZES:
        for chosen in combinations(range(inputs), size):
            classes = len({column.tobytes() for column in _columns(table, inputs, chosen)})
            bits = (classes - 1).bit_length()
            if bits < size and bits + remaining(inputs - size + bits) < best:
                best, found = bits + remaining(inputs - size + bits), chosen
    return found


def _columns(table: Bits, inputs: int, chosen: tuple[int, ...]) -> Bits:
    """Return [2^chosen, 2^rest * outputs]: what remains of the function at each value of `chosen`."""
    cube = table.reshape(*[2] * inputs, table.shape[1])
    front = [inputs - 1 - k for k in reversed(chosen)]
    rest = [axis for axis in range(inputs) if axis not in front]
    return cube.transpose(*front, *rest, inputs).reshape(1 << len(chosen), -1)


def _depends(table: Bits, k: int) -> bool:
    pairs = table.reshape(-1, 2, 1 << k, table.shape[1])
    return not np.array_equal(pairs[:, 0], pairs[:, 1])


def _free(table: Bits, idle: list[int]) -> Bits:
    """Drop inputs that the table does not depend on."""
    for k in sorted(idle, reverse=True):
        table = table.reshape(-1, 2, 1 << k, table.shape[1])[:, 0].reshape(-1, table.shape[1])
    return table


def _number(column: Bits) -> int:
    return int(sum(int(bit) << k for k, bit in enumerate(column)))
