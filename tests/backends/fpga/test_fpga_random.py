"""Random networks: the front gives the reference's values, wires keep their bounds, circuits the integers."""

from __future__ import annotations

import numpy as np
import pytest
from fpga_random import Random

from pared.backends.fpga.graph import Requant
from pared.backends.fpga.host import Host
from pared.backends.fpga.read import read_network
from pared.backends.fpga.simulate import simulate
from pared.backends.reference import evaluate
from pared.compiler.errors import UnsupportedOp

MOST_PRODUCTS = 400


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_networks_are_the_reference_bit_for_bit(first: int) -> None:
    compared = 0
    for seed in range(first, first + 10):
        net, x = Random(seed).model()
        try:
            network = read_network(net)
        except UnsupportedOp:
            continue  # sums of scales that no whole factors meet
        if any(layer.unproven for layer in network.layers if isinstance(layer, Requant)):
            continue  # the report says so
        host = Host(network)
        wires = simulate(network, host.encode({"x": x}))
        for name, q in wires.items():
            low, high = network.wires[name].low, network.wires[name].high
            assert bool(((q >= low) & (q <= high)).all()), f"seed {seed}: {name} leaves its bounds"
        got = host.decode({name: wires[name] for name in network.outputs})["y"]
        assert np.array_equal(got, evaluate(net, {"x": x})["y"]), f"seed {seed}"
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("first", range(100, 120, 5))
def test_circuits_of_random_networks_give_the_golden_integers(first: int) -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import products, trace

    for seed in range(first, first + 5):
        net, _ = Random(seed).model()
        try:
            network = read_network(net)
        except UnsupportedOp:
            continue
        if sum(products(layer, network.wires) for layer in network.layers) > MOST_PRODUCTS:
            continue
        wire, rng = network.inputs[0], np.random.default_rng(seed)
        steps = rng.integers(0, (wire.most - wire.least) // wire.step + 1, (60, *wire.shape))
        codes = {wire.name: wire.least + wire.step * steps}
        circuit = trace(network)
        left = circuit.logic.predict(circuit.enter(network, codes).astype(np.float64), 1)
        got, want = circuit.leave(network, np.rint(left).astype(np.int64)), simulate(network, codes)
        assert all(np.array_equal(got[name], want[name]) for name in network.outputs), f"seed {seed}"
