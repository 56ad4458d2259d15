"""Truth tables: their decomposition, their Verilog, and neurons that become tables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from fpga_models import model, quant
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pared.backends.fpga.decompose import decompose
from pared.backends.fpga.graph import Network
from pared.backends.fpga.read import read_network
from pared.backends.fpga.simulate import simulate
from pared.backends.fpga.tables import with_modules

Bits = npt.NDArray[np.uint8]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([0.02, 0.3, 0.5, 1.0]))
def test_decomposed_logic_is_the_table(inputs: int, outputs: int, seed: int, ones: float) -> None:
    table = (np.random.default_rng(seed).random((1 << inputs, outputs)) < ones).astype(np.uint8)
    assert np.array_equal(decompose(table).evaluate(), table)


def sum_table(weights: list[int], bits: int, thresholds: list[int]) -> Bits:
    codes = np.arange(1 << bits * len(weights))
    top = (1 << bits) - 1
    total = sum(w * (codes >> bits * k & top) for k, w in enumerate(weights))
    counts = np.searchsorted(thresholds, total, side="right")
    return (counts[:, None] >> np.arange(len(thresholds).bit_length()) & 1).astype(np.uint8)


@pytest.mark.parametrize(
    ("weights", "bits", "thresholds", "most"),
    [([1] * 12, 1, [6], 14), ([1, -1, 1, 1, -1, 1], 2, [-2, 1, 4], 21), ([3, -2, 1, 1], 2, [0, 2, 5], 14)],
)
def test_threshold_functions_need_few_tables(
    weights: list[int], bits: int, thresholds: list[int], most: int
) -> None:
    assert decompose(sum_table(weights, bits, thresholds)).luts <= most


def test_random_functions_cost_what_splitting_costs() -> None:
    table = np.random.default_rng(0).integers(0, 2, (256, 1)).astype(np.uint8)
    assert decompose(table).luts == 16


def test_an_input_that_changes_nothing_is_not_read() -> None:
    table = (np.arange(32) >> 3 & 1).astype(np.uint8)[:, None]
    logic = decompose(table)
    assert logic.nodes == ()
    assert logic.outputs == (3,)


def test_files_without_tables_stay() -> None:
    files = {"model.v": "module model; endmodule", "lookup_table.v": "..."}
    assert with_modules(files) == {"model.v": files["model.v"]}


def sparse(fan_in: int, bits: int, seed: int = 0, sizes: tuple[int, int] = (16, 12)) -> Network:
    """Return quantized inputs, a sparse layer of 3-bit weights, a quantizer, and a dense layer."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((sizes[1], sizes[0]), np.float32)
    for row in rows:
        row[rng.choice(sizes[0], fan_in, replace=False)] = rng.choice([-3, -2, -1, 1, 2, 3], fan_in)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "w1": rows, "w2": rng.integers(-3, 4, (3, sizes[1])).astype(np.float32), "s": np.float32(1),
        "t": np.float32(2.5), "zero": np.float32(0), "b": np.float32(bits), "three": np.float32(3),
        "offset": rng.integers(-3, 4, sizes[1]).astype(np.float32),
    }  # fmt: skip
    nodes = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        quant("w1", "w1q", "s", "three", signed=1, narrow=1),
        helper.make_node("Gemm", ["xq", "w1q", "offset"], ["h"], transB=1),
        quant("h", "hq", "t", "b", signed=1, narrow=1),
        quant("w2", "w2q", "s", "three", signed=1, narrow=1),
        helper.make_node("Gemm", ["hq", "w2q"], ["y"], transB=1),
    ]
    return read_network(model(nodes, arrays, [sizes[0]], [3]))


def results(network: Network, count: int = 400) -> tuple[dict[str, Bits], dict[str, Bits], int]:
    """Return golden integers, the circuit's, and how many tables are in it."""
    from pared.backends.fpga.circuit import trace

    wire = network.inputs[0]
    rng = np.random.default_rng(3)
    codes = {wire.name: rng.integers(wire.least, wire.most + 1, (count, *wire.shape))}
    circuit = trace(network)
    left = circuit.logic.predict(circuit.enter(network, codes).astype(np.float64), 1)
    got = circuit.leave(network, np.rint(left).astype(np.int64))
    want = simulate(network, codes)
    return {n: want[n] for n in network.outputs}, got, sum(op.opcode == 8 for op in circuit.logic.ops)


@pytest.mark.parametrize(("fan_in", "bits"), [(1, 2), (2, 3), (3, 2), (4, 3), (6, 2)])
def test_sparse_neurons_become_tables_and_give_the_golden_integers(fan_in: int, bits: int) -> None:
    pytest.importorskip("da4ml")
    want, got, tables = results(sparse(fan_in, bits))
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert tables > 0


def test_neurons_of_many_bits_stay_sums() -> None:
    pytest.importorskip("da4ml")
    want, got, tables = results(sparse(7, 2))
    assert tables == 0
    assert all(np.array_equal(got[name], want[name]) for name in want)


def test_no_table_without_asking() -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace

    assert not trace(sparse(3, 2), tables=False).logic.lookup_tables


def test_verilog_with_tables_computes_the_golden_integers() -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.simulation import ports, simulate_rtl, simulators
    from pared.backends.fpga.verilog import write_rtl

    if "iverilog" not in simulators():
        pytest.skip("iverilog is not installed")
    network = sparse(4, 2)
    wire = network.inputs[0]
    codes = {wire.name: np.random.default_rng(1).integers(wire.least, wire.most + 1, (500, *wire.shape))}
    circuit = trace(network)
    rtl = write_rtl(circuit.logic, 4.0)
    assert not any(name.endswith(".mem") for name in rtl.files)
    got = simulate_rtl(rtl, circuit.enter(network, codes), ports(circuit.logic), "iverilog")
    left, want = circuit.leave(network, got), simulate(network, codes)
    assert all(np.array_equal(left[name], want[name]) for name in network.outputs)
