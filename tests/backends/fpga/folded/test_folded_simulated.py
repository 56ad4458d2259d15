"""The Verilog of the folded engine gives the golden integers, in the clocks that were computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from folded_nets import Net, codes_of, design_of, simulated

from pared.backends.fpga.graph import Network, Wire
from pared.backends.fpga.simulate import simulate
from pared.backends.fpga.tools import find_tool

pytestmark = pytest.mark.skipif(
    find_tool("iverilog") is None or find_tool("vvp") is None, reason="not installed: iverilog"
)


def compare(network: Network, lanes: int, units: int, *, count: int = 3, gaps: bool = False) -> None:
    """Assert equal integers and, without gaps, the computed clocks."""
    codes = codes_of(network, count)
    want = simulate(network, codes)
    got = simulated(network, lanes, units, codes, gaps=gaps)
    for name in network.outputs:
        np.testing.assert_array_equal(got.codes[name], want[name])
    if not gaps:
        assert set(got.clocks) == {design_of(network, lanes, units).program.clocks}


def mlp(net: Net) -> tuple[Wire, ...]:
    x = net.input((9,), zero=3)
    hidden = net.quant(net.dense(x, 6), 15, zero=2)
    return (net.dense(hidden, 5),)


def picture(net: Net) -> tuple[Wire, ...]:
    x = net.input((3, 6, 5), 0, 15, zero=4)
    a = net.quant(net.conv(x, 6, (3, 3), pads=(1, 0, 1, 2)), 15, start=-8, zero=-3)
    b = net.quant(net.conv(a, 6, (3, 2), strides=2, pads=(1, 1, 1, 0), group=6), 15, zero=1, falling=True)
    c = net.pool(b, "max", (2, 2), 1, (1, 0, 0, 1))
    d = net.quant(net.conv(c, 4, (1, 1), dilation=2), 7)
    return (net.quant(net.dense(net.flat(d), 4), 15, channels=False),)


def grouped(net: Net) -> tuple[Wire, ...]:
    x = net.input((4, 5, 5))
    a = net.quant(net.conv(x, 6, (2, 2), group=2, dilation=2), 15)
    return (net.quant(net.pool(a, "sum", (3, 3), 3), 15, channels=False, kind="rough"),)


def signal(net: Net) -> tuple[Wire, ...]:
    x = net.input((2, 11))
    a = net.quant(net.conv(x, 3, (3,), pads=(2, 0)), 3, step=2, start=-3, falling=True)
    return (net.quant(net.pool(a, "sum", (11,), 1), 15),)


def residual(net: Net) -> tuple[Wire, ...]:
    x = net.input((3, 3, 3), zero=1)
    a = net.quant(net.conv(x, 5, (1, 1)), 15, zero=2)
    b = net.quant(net.conv(a, 5, (3, 3), pads=(1, 1, 1, 1)), 15, zero=7, kind="rough")
    total = net.quant(net.mix(a, b, (37, -5)), 31, channels=False, kind="rough")
    again = net.quant(total, 7, channels=False)
    return again, net.conv(total, 2, (3, 3))


def two_inputs(net: Net) -> tuple[Wire, ...]:
    a, b = net.input((5,), 0, 3), net.input((5,), -8, 7, zero=-2)
    total = net.quant(net.mix(a, b, (3, 4)), 15, kind="even", channels=False)
    return total, net.dense(total, 3)


def reordered(net: Net) -> tuple[Wire, ...]:
    x = net.input((4, 3, 2))
    order = np.arange(24).reshape(4, 3, 2).transpose(2, 0, 1).reshape(-1)
    a = net.quant(net.conv(net.move(x, order, (2, 4, 3)), 3, (2, 2)), 15)
    return (net.dense(net.move(a, net.rng.permutation(18), (18,)), 2),)


def ties(net: Net) -> tuple[Wire, ...]:
    a, b = net.input((30,), 0, 15), net.input((30,), 0, 15)
    return (net.quant(net.mix(a, b, (1, 1)), 5, kind="even", channels=False),)


def falling_tables(net: Net) -> tuple[Wire, ...]:
    x = net.input((20,), -128, 127)
    return (net.quant(net.dense(x, 6, 127), 255, falling=True, kind="rough"),)


def many_weights(net: Net) -> tuple[Wire, ...]:
    return (net.dense(net.input((150,)), 40),)


NETS = (mlp, picture, grouped, signal, residual, two_inputs, reordered, ties, falling_tables, many_weights)


@pytest.mark.parametrize(("lanes", "units"), [(4, 2), (2, 1), (8, 8)])
@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_simulated_integers_and_clocks_are_those_computed(
    make: Callable[[Net], tuple[Wire, ...]], lanes: int, units: int
) -> None:
    net = Net(np.random.default_rng(lanes))
    compare(net.network(*make(net)), lanes, units)


def test_values_may_come_with_gaps() -> None:
    net = Net(np.random.default_rng(0))
    compare(net.network(*picture(net)), 4, 2, gaps=True)


@pytest.mark.parametrize("seed", range(8))
def test_random_dense_networks_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = Net(rng)
    low = int(rng.integers(-128, 1))
    x = net.input((int(rng.integers(1, 12)),), low, low + 255, zero=int(rng.integers(low, low + 256)))
    kind = ("line", "even", "rough")[seed % 3]
    wire = net.quant(
        net.dense(x, int(rng.integers(1, 10)), 127),
        255,
        start=-128,
        zero=int(rng.integers(-128, 128)),
        kind=kind,
    )
    wire = net.quant(net.dense(wire, int(rng.integers(1, 10)), 127), int(rng.integers(1, 256)), falling=True)
    compare(net.network(wire), int(rng.choice([2, 4, 8])), int(rng.choice([1, 2])), count=6)
