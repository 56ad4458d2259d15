"""The circuit and its Verilog compute the golden integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fpga_models import binary, curve, joined, mlp, qdq_conv, residual
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.fpga.executable import CircuitExecutable
from pared.backends.fpga.host import Host
from pared.backends.fpga.read import read_network
from pared.backends.fpga.scaling import find_scaling
from pared.backends.fpga.simulate import simulate
from pared.compiler.ir.export import signature_of

NETWORKS = {
    "qonnx": lambda: mlp(3),
    "binary": lambda: binary(np.random.default_rng(1)),
    "qdq-conv": lambda: qdq_conv(np.random.default_rng(2), True, 2, 1, 1),
    "qdq-depthwise": lambda: qdq_conv(np.random.default_rng(3), False, 2, 1, 4),
    "joined": joined,
    "residual": lambda: residual(2.0),
    "unlike-sum": lambda: residual(2.8),
    "curve": lambda: curve(np.random.default_rng(4)),
}


def entering(net: ir.Model, count: int) -> np.ndarray:
    shape = [int(size) for size in list(net.graph.inputs[0].shape or ())[1:] if isinstance(size, int)]
    return np.random.default_rng(0).normal(0, 3, (count, *shape)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 3.0), st.floats(-50, 50), st.integers(2, 40), st.integers(50, 5000))
def test_a_scaling_counts_the_same_as_its_thresholds(
    slope: float, shift: float, levels: int, reach: int
) -> None:
    thresholds = np.ceil((np.arange(1, levels + 1) - 0.5) / slope + shift).astype(np.int64)
    found = find_scaling(thresholds, -reach, reach)
    if found is None:
        pytest.fail("a line has a scaling")
    a = np.arange(-reach, reach + 1)
    line = np.clip((found.factor * a + found.bias) >> found.shift, 0, levels)
    inside = (thresholds > -reach) & (thresholds <= reach)
    first, last = int((thresholds <= -reach).sum()), int(inside.sum())
    want = np.searchsorted(thresholds, a, side="right")
    assert np.array_equal(np.clip(line, first, first + last), want)


@pytest.mark.parametrize("offset", [0, 1, 3, -7, 64])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("first", [0, 1])
def test_rounding_half_to_even_of_powers_of_two_is_one_addition(offset: int, shift: int, first: int) -> None:
    a = np.arange(-3000, 9000)
    codes = np.clip(np.rint((a + offset) / 2**shift), first, first + 40).astype(np.int64) - first
    thresholds = np.array([a[np.argmax(codes >= k)] for k in range(1, 41)])
    found = find_scaling(thresholds, -3000, 8999)
    assert found is not None
    assert found.factor == 1
    u = a + found.bias
    carry = ((u >> found.shift) & 1) == found.even
    assert np.array_equal(np.clip((u + carry) >> found.shift, 0, 40), codes)


def test_thresholds_that_are_no_line_have_no_scaling() -> None:
    assert find_scaling(np.array([0, 1, 2, 50, 51, 400]), -500, 500) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_the_circuit_computes_the_golden_integers(name: str) -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace

    net = NETWORKS[name]()
    network = read_network(net)
    codes = Host(network).encode({"x": entering(net, 1000)})
    want = simulate(network, codes)
    got = CircuitExecutable(network, trace(network), signature_of(net), 1).codes(codes)
    assert all(np.array_equal(got[output], want[output]) for output in network.outputs)


def test_tracing_twice_gives_the_same_verilog() -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.verilog import write_rtl

    first, second = (write_rtl(trace(read_network(mlp(3))).logic, 4.0) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["qonnx", "binary"])
def test_simulated_verilog_gives_one_right_result_per_clock(name: str) -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.simulation import ports, simulate_rtl, simulators
    from pared.backends.fpga.verilog import write_rtl

    if "iverilog" not in simulators():
        pytest.skip("iverilog is not installed")
    net = NETWORKS[name]()
    network = read_network(net)
    circuit = trace(network)
    codes = Host(network).encode({"x": entering(net, 1000)})
    raw = circuit.enter(network, codes)
    got = simulate_rtl(write_rtl(circuit.logic, 4.0), raw, ports(circuit.logic), "iverilog")
    want = simulate(network, codes)
    left = circuit.leave(network, got)
    assert all(np.array_equal(left[output], want[output]) for output in network.outputs)
