"""Cutting channels out of random graphs equals the network with zeros where they were read, bit for bit.

Weights and inputs are small integers, so that every sum is exact in whatever order it is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import graph, ran

from pared.backends.reference import evaluate
from pared.compiler.ir import walk
from pared.compiler.ir.shapes import infer_shapes
from pared.compiler.ir.text import fingerprint
from pared.compiler.ir.verifier import verify_graph
from pared.passes.prune.channels_cut import cut, keeping
from pared.passes.prune.channels_graph import Graph, Mask, Units, solve
from pared.passes.prune.channels_rules import propagate
from pared.passes.prune.channels_select import _revived, families
from pared.passes.prune.weights import replace_constant


class Net:
    """A random graph of values `[1, channels, 4, 4]`."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {"axes1": np.array([1])}
        self.values: list[tuple[str, int]] = []

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = self.rng.integers(-2, 3, shape).astype(np.float32)
        return name

    def numbers(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def add(self, expression: str, channels: int) -> None:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        self.values.append((name, channels))

    def any(self) -> tuple[str, int]:
        return self.values[self.rng.integers(max(0, len(self.values) - 3), len(self.values))]


def _conv(net: Net) -> None:
    (x, c), rows = net.any(), int(net.rng.choice([4, 6, 8]))
    net.add(f"Conv<pads=[1,1,1,1]>({x}, {net.constant(rows, c, 3, 3)}, {net.constant(rows)})", rows)


def _grouped(net: Net) -> None:
    x, c = net.any()
    rows = int(net.rng.choice([4, 8]))
    if c % 2 == 0:
        net.add(f"Conv<group=2>({x}, {net.constant(rows, c // 2, 1, 1)})", rows)


def _depthwise(net: Net) -> None:
    x, c = net.any()
    m = int(net.rng.choice([1, 2]))
    net.add(
        f"Conv<group={c}, pads=[1,1,1,1]>({x}, {net.constant(m * c, 1, 3, 3)}, {net.constant(m * c)})", m * c
    )


def _residual(net: Net) -> None:
    x, c = net.any()
    others = [v for v, n in net.values if n == c and v != x]
    op = str(net.rng.choice(["Add", "Sub", "Max", "Mul"]))
    net.add(f"{op}({x}, {str(net.rng.choice(others)) if others else x})", c)


def _concat(net: Net) -> None:
    (a, c), (b, d) = net.any(), net.any()
    if c + d <= 16:
        net.add(f"Concat<axis=1>({a}, {b})", c + d)


def _split(net: Net) -> None:
    x, c = net.any()
    first = int(net.rng.integers(1, c)) if c > 1 else 0
    if not first:
        return
    a, b = f"s{len(net.lines)}", f"t{len(net.lines)}"
    how = f"Split<axis=1>({x}, {net.numbers(first, c - first)})"
    if c % 2 == 0 and net.rng.random() < 0.5:
        first, how = c // 2, f"Split<axis=1, num_outputs=2>({x})"
    net.lines.append(f"{a}, {b} = {how}")
    net.values += [(a, first), (b, c - first)]


def _slice(net: Net) -> None:
    x, c = net.any()
    low = int(net.rng.integers(0, c))
    net.add(f"Slice({x}, {net.numbers(low)}, {net.numbers(2**60)}, axes1)", c - low)


def _gather(net: Net) -> None:
    x, c = net.any()
    order = [int(i) for i in net.rng.permutation(c)]
    net.add(f"Gather<axis=1>({x}, {net.numbers(*order)})", c)


def _shuffle(net: Net) -> None:
    x, c = net.any()
    if c % 2:
        return
    i = len(net.lines)
    net.lines += [
        f"a{i} = Reshape({x}, {net.numbers(1, 2, c // 2, 4, 4)})",
        f"b{i} = Transpose<perm=[0,2,1,3,4]>(a{i})",
        f"c{i} = Reshape(b{i}, {net.numbers(0, -1, 4, 4)})",
    ]
    net.values.append((f"c{i}", c))


def _pad(net: Net) -> None:
    x, c = net.any()
    net.add(f"Pad({x}, {net.numbers(0, 1, 0, 0, 0, 2, 0, 0)})", c + 3)


def _affine(net: Net) -> None:
    x, c = net.any()
    net.add(f"{net.rng.choice(['Mul', 'Add', 'PRelu'])}({x}, {net.constant(c, 1, 1)})", c)


def _relu(net: Net) -> None:
    x, c = net.any()
    net.add(f"{net.rng.choice(['Relu', 'Neg', 'Abs'])}({x})", c)


def _gate(net: Net) -> None:
    """Squeeze and excite."""
    x, c = net.any()
    i = len(net.lines)
    net.lines += [
        f"p{i} = GlobalMaxPool({x})",
        f"q{i} = Conv(p{i}, {net.constant(4, c, 1, 1)})",
        f"r{i} = Conv(q{i}, {net.constant(c, 4, 1, 1)})",
    ]
    net.add(f"Mul({x}, r{i})", c)


STEPS: dict[str, Callable[[Net], None]] = {
    "conv": _conv, "grouped": _grouped, "depthwise": _depthwise, "residual": _residual, "concat": _concat,
    "split": _split, "slice": _slice, "gather": _gather, "shuffle": _shuffle, "pad": _pad,
    "affine": _affine, "relu": _relu, "gate": _gate,
}  # fmt: skip


def random_model(steps: list[str], seed: int, end: str) -> ir.Model:
    net = Net(seed)
    net.values.append(("x", 3))
    for step in ["conv", *steps, "conv"]:
        STEPS[step](net)
        if step in ("conv", "grouped", "depthwise", "residual", "gate"):  # keeps numbers small
            x, c = net.values[-1]
            net.add(f"Clip({x}, low, high)", c)
    net.weights |= {"low": np.float32(-3), "high": np.float32(3)}
    x, c = net.values[-1]
    if end == "flatten":
        net.lines += [f"f = Flatten({x})", f"h = Gemm(f, {net.constant(16 * c, 6)}, {net.constant(6)})"]
    elif end == "tokens":
        shape, turned = net.numbers(1, c, 16), net.constant(c, 6)
        net.lines += [
            f"m = Reshape({x}, {shape})", "n = Transpose<perm=[0,2,1]>(m)",
            f"o = MatMul(n, {turned})", "h = ReduceSum<keepdims=0>(o, axes1)",
        ]  # fmt: skip
    else:
        net.lines += [f"g = GlobalMaxPool({x})", f"k = Squeeze(g, {net.numbers(2, 3)})"]
        net.lines += [f"h = Gemm<transB=1>(k, {net.constant(6, c)})"]
    net.lines += [f"y = MatMul(h, {net.constant(6, 3)})"]
    return graph("\n".join(net.lines), {"x": (1, 3, 4, 4)}, {"y": (1, 3)}, net.weights)


def solved(model: ir.Model) -> tuple[Graph, Units]:
    found = Graph(model, lambda node: False)
    propagate(found)
    return found, solve(found)


def zeroed(model: ir.Model, gone_of: Callable[[Units], Mask]) -> ir.Model:
    """The whole network, with zeros where layers read units that go."""
    copy = model.clone()
    found, units = solved(copy)
    gone = gone_of(units)
    for weight in found.weights.values():
        array = walk.constant(weight.value)
        assert array is not None
        array = array.copy()
        for axis, role in weight.roles.items():
            labels = weight.axes[axis]
            if role == "column" and labels is not None:
                np.moveaxis(array, axis, 0)[gone[units.of[labels]]] = 0
        replace_constant(copy, weight.value, array)
    return copy


def both(model: ir.Model, seed: int) -> tuple[ir.Model, ir.Model, int]:
    """The network zeroed and cut, for a random choice of units, and how many go."""
    found, units = solved(model)
    rng = np.random.default_rng(seed)
    gone = np.zeros(units.count, np.bool_)
    for family in families(found, units, 1):
        gone[family.units] = rng.random(len(family.units)) < 0.5
    gone = _revived(found, units, rng.random(units.count), gone)
    other = zeroed(model, lambda _: gone)
    narrow = model.clone()
    again, same = solved(narrow)
    assert np.array_equal(same.of, units.of)
    cut(again, keeping(same, gone))
    infer_shapes(narrow)
    verify_graph(narrow)
    return other, narrow, int(gone.sum())


def check(model: ir.Model, seed: int) -> int:
    other, narrow, gone = both(model, seed)
    port = model.graph.inputs[0]
    shape = [int(dim) if isinstance(dim, int) else 1 for dim in port.shape or ()]
    x = np.random.default_rng(seed + 1).integers(-3, 4, shape).astype(np.float32)
    name = str(port.name)
    np.testing.assert_array_equal(evaluate(narrow, {name: x})["y"], evaluate(other, {name: x})["y"])
    return gone


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
    end=st.sampled_from(["flatten", "tokens", "pool"]),
)
def test_the_cut_network_equals_the_zeroed_one(steps: list[str], seed: int, end: str) -> None:
    check(random_model(steps, seed, end), seed)


@pytest.mark.parametrize("step", sorted(STEPS))
@pytest.mark.parametrize("end", ["flatten", "tokens", "pool"])
def test_channels_go_through_every_operator(step: str, end: str) -> None:
    assert any(check(random_model([step, "relu", step], seed, end), seed) > 0 for seed in range(4))


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    criterion=st.sampled_from(["magnitude", "fpgm", "datafree"]),
    scope=st.sampled_from(["layer", "global"]),
)
def test_level_zero_changes_nothing_and_any_level_gives_a_valid_graph(
    steps: list[str], seed: int, criterion: str, scope: str
) -> None:
    model = random_model(steps, seed, "flatten")
    options = f"criterion={criterion} scope={scope} round_to=1"
    same, stats = ran(model, f"prune-channels{{sparsity=0 {options}}}")
    assert stats.changed == 0
    assert fingerprint(same) == fingerprint(model)
    found, _ = ran(model, f"prune-channels{{sparsity=0.5 {options}}}")
    verify_graph(found)
