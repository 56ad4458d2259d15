"""What is refused, what fits, and what the artifact runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folded_nets import Net, codes_of, design_of

from pared.backends.fpga.folded.folding import choose
from pared.backends.fpga.folded.golden import load, pack
from pared.backends.fpga.folded.image import bank_bits, bank_blocks, blocks
from pared.backends.fpga.folded.program import Folding, lines_of, program_of, weight_bits
from pared.backends.fpga.folded.stream import enter, leave
from pared.backends.fpga.folded.tasks import Tasks, tasks_of
from pared.backends.fpga.simulate import simulate
from pared.compiler.errors import ArtifactError, TargetError, UnsupportedOp
from pared.compiler.target import Resources


def dense_tasks(size: int = 200) -> Tasks:
    net = Net(np.random.default_rng(0))
    return tasks_of(net.network(net.dense(net.quant(net.dense(net.input((size,)), size), 15), 10)))


def test_more_multipliers_are_taken_where_the_device_has_them() -> None:
    tasks = dense_tasks()
    lines = lines_of(tasks)
    small, large = (choose(tasks, lines, Resources(dsp=d, lut=50_000, bram=100)) for d in (12, 80))
    assert small.needs.dsp <= 12 < large.needs.dsp
    assert large.program.clocks < small.program.clocks


def test_a_network_that_does_not_fit_is_refused_naming_its_largest_layer() -> None:
    tasks = dense_tasks()
    with pytest.raises(TargetError, match=r"dense0.*alone take .* at 4 bits") as caught:
        choose(tasks, lines_of(tasks), Resources(dsp=12, lut=50_000, bram=3))
    assert caught.value.reason == "fpga-does-not-fit"


@pytest.mark.parametrize(("lanes", "units"), [(3, 0), (4, 3), (4, 8)])
def test_odd_numbers_of_lanes_and_units_are_refused(lanes: int, units: int) -> None:
    tasks = dense_tasks(20)
    with pytest.raises(TargetError) as caught:
        choose(tasks, lines_of(tasks), Resources(), lanes, units)
    assert caught.value.reason == "engine-option"


def test_a_reordering_between_convolutions_is_refused() -> None:
    net = Net(np.random.default_rng(0))
    a = net.quant(net.conv(net.input((4, 3, 3)), 4, (1, 1)), 15)
    moved = net.move(a, np.arange(36).reshape(4, 9).T.reshape(-1), (9, 2, 2))
    with pytest.raises(UnsupportedOp) as caught:
        tasks_of(net.network(net.conv(moved, 2, (1, 1))))
    assert caught.value.reason == "fpga-folded-move"


def test_an_input_that_leaves_unchanged_is_refused() -> None:
    net = Net(np.random.default_rng(0))
    x = net.input((4,))
    with pytest.raises(UnsupportedOp) as caught:
        tasks_of(net.network(net.dense(x, 2), x))
    assert caught.value.reason == "fpga-folded-output"


def test_a_curve_is_refused() -> None:
    net = Net(np.random.default_rng(0))
    curve = net.quant(net.dense(net.input((40,), -128, 127), 3, 127), 15, channels=False, kind="curve")
    tasks = tasks_of(net.network(net.dense(curve, 2)))
    with pytest.raises(UnsupportedOp) as caught:
        lines_of(tasks)
    assert caught.value.reason == "fpga-folded-thresholds"


def test_memory_of_tensors_nobody_reads_any_more_is_used_again() -> None:
    net = Net(np.random.default_rng(0))
    wire = net.input((4, 5, 5))
    for _ in range(6):
        wire = net.quant(net.conv(wire, 4, (1, 1)), 15)
    assert design_of(net.network(net.dense(net.flat(wire), 2)), 4, 2).program.depth == 50


def test_banks_take_the_fewest_blocks() -> None:
    assert bank_bits(512, 4240) == 11
    assert bank_blocks(512, 4240, 11) == 2 * 57 + 15
    assert bank_blocks(512, 4240, 10) >= bank_blocks(512, 4240, 11)
    assert blocks(8, 100_000) == bank_blocks(8, 100_000, 14)


def test_streams_put_every_value_where_it_was() -> None:
    net = Net(np.random.default_rng(0))
    x = net.input((5, 3, 2), zero=3)
    network = net.network(net.quant(net.conv(x, 5, (1, 1)), 15))
    program = design_of(network, 4, 2).program
    stream = enter(program, codes_of(network, 2))
    assert stream.shape == (2, 6 * 2 * 2, 2)
    back = leave(program, stream)[network.outputs[0]]
    np.testing.assert_array_equal(back, codes_of(network, 2)["x0"] - 3)


def test_clocks_are_a_sum_over_layers() -> None:
    tasks = dense_tasks(20)
    program = program_of(tasks, lines_of(tasks), Folding(8, 2), weight_bits(tasks))
    flush, fetch = 17 + 4, 2
    # 20 inputs in 3 words of 4 chunks; 3 groups of 20 steps; 2 groups of 20
    assert program.clocks == (3 * 4 + 3 * 20 + 2 * 20) + 3 * (flush + fetch)


def test_the_artifact_runs_the_golden_integers(tmp_path: Path) -> None:
    net = Net(np.random.default_rng(0))
    x = net.input((2, 5, 5))
    a = net.quant(net.conv(x, 2, (3, 3), pads=(1, 1, 1, 1)), 15)
    pooled = net.pool(net.quant(net.mix(x, a, (3, 2)), 7, channels=False), "max", (2, 2), 1)
    network = net.network(net.dense(net.flat(pooled), 3))
    for name, content in pack(network).items():
        (tmp_path / name).write_bytes(content)
    assert pack(network) == pack(network)
    again = load(tmp_path).network
    codes = codes_of(network, 4)
    want, got = simulate(network, codes), simulate(again, codes)
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_a_damaged_artifact_is_refused(tmp_path: Path) -> None:
    net = Net(np.random.default_rng(0))
    for name, content in pack(net.network(net.dense(net.input((2,)), 2))).items():
        (tmp_path / name).write_bytes(content[:-9])
    with pytest.raises(ArtifactError):
        load(tmp_path)
