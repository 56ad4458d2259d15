"""Estimates before synthesis: near what is traced and what was routed, quick, and with a verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fpga_models import binary, mlp, qdq_conv, residual

from pared.backends.fpga.circuit import Circuit
from pared.backends.fpga.estimate import FAMILIES, estimate
from pared.backends.fpga.estimate_matrix import Block, block_cost, block_depth, blocks, signed_digits
from pared.backends.fpga.graph import Dense, Network
from pared.backends.fpga.read import read_network
from pared.compiler.driver.estimating import estimate_recipe
from pared.compiler.errors import ParedError
from pared.compiler.recipe import Recipe
from pared.compiler.target import Target
from pared.targets import load_target

NETWORKS = {
    "qonnx": lambda: mlp(4, sizes=(32, 16, 8)),
    "binary": lambda: binary(np.random.default_rng(1)),
    "convolution": lambda: qdq_conv(np.random.default_rng(2), True, 1, 1, 1),
    "depthwise": lambda: qdq_conv(np.random.default_rng(3), False, 2, 1, 4),
    "residual": lambda: residual(2.0),
}
ROUTED = sorted((Path(__file__).parents[3] / "bench" / "fpga" / "routed").glob("*.json"))


@pytest.fixture(autouse=True)
def with_da4ml() -> None:
    pytest.importorskip("da4ml")


def ecp5(**counts: int) -> Target:
    target = load_target("fpga-ecp5-25k")
    return target.model_copy(update={"resources": target.resources.model_copy(update=counts)})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_estimated_cost_is_near_the_traced_one(name: str) -> None:
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.estimate_unrolled import layer_costs

    network = read_network(NETWORKS[name]())
    guess, truth = sum(one.cost for one in layer_costs(network)), float(trace(network).logic.cost)
    assert 0.75 * truth <= guess <= 1.3 * truth


@pytest.mark.parametrize(("bits", "share"), [(2, 1.0), (4, 1.0), (4, 0.3), (8, 1.0)])
def test_the_formula_for_a_matrix_is_near_the_optimizer(bits: int, share: float) -> None:
    from da4ml.cmvm import solve

    rng = np.random.default_rng(bits)
    top = 2 ** (bits - 1) - 1
    rows = np.clip(np.rint(rng.normal(0, top / 2, (16, 32))), -top, top) * (rng.random((16, 32)) < share)
    rows = rows.astype(np.int64)
    intervals = [(0.0, 15.0, 1.0)] * 32
    solved = solve(
        np.ascontiguousarray(rows.T, np.float32), qintervals=intervals, latencies=[0.0] * 32, hard_dc=2,
        adder_size=1, carry_size=-1,
    )  # fmt: skip
    assert block_cost(Block(rows), 15) == pytest.approx(float(solved.cost), rel=0.25)


def test_neurons_that_nothing_reads_or_that_never_change_cost_nothing() -> None:
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.estimate_unrolled import layer_costs

    network = read_network(mlp(4, sizes=(32, 16, 8)))
    first, middle, last = network.layers
    assert isinstance(first, Dense)
    assert isinstance(last, Dense)
    columns = np.where(np.arange(16) < 6, last.weights, 0)
    some = replace(network, layers=(first, middle, replace(last, weights=columns)))
    guess, truth = sum(one.cost for one in layer_costs(some)), float(trace(some).logic.cost)
    assert 0.75 * truth <= guess <= 1.3 * truth
    assert guess < 0.6 * sum(one.cost for one in layer_costs(network))


def test_signed_digits_are_the_fewest_by_counting() -> None:
    def fewest(value: int) -> int:
        if value == 0:
            return 0
        return 1 + fewest((value - 1) // 2) if value % 4 == 1 else (
            1 + fewest((value + 1) // 2) if value % 2 else fewest(value // 2)
        )  # fmt: skip

    values = np.arange(-300, 301)
    assert signed_digits(values).tolist() == [fewest(abs(int(v))) for v in values]


def test_rows_that_repeat_cost_nothing_more() -> None:
    rows = np.random.default_rng(0).integers(-3, 4, (4, 12))
    assert block_cost(Block(np.concatenate([rows, -rows, rows])), 7) == block_cost(Block(rows), 7)


def test_depth_of_a_block_is_that_of_a_tree_over_its_digits() -> None:
    assert [block_depth(Block(np.array([row]))) for row in ([1, 1, 1, 1], [1, 1, 1, 3], [0, 8, 0, 0])] == [
        2, 3, 0,
    ]  # fmt: skip


def test_blocks_cover_every_nonzero_weight_once() -> None:
    matrix = np.random.default_rng(0).integers(-2, 3, (130, 70))
    assert sum(int(np.abs(block.rows).sum()) for block in blocks(matrix)) == int(np.abs(matrix).sum())


def test_of_large_matrices_a_bounded_part_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    from pared.backends.fpga import estimate_unrolled

    seen: list[Network] = []
    real = estimate_unrolled.trace

    def recorded(part: Network) -> Circuit:
        seen.append(part)
        return real(part)

    monkeypatch.setattr(estimate_unrolled, "trace", recorded)
    network = read_network(mlp(3, sizes=(400, 300, 200)))
    costs = estimate_unrolled.layer_costs(network)
    weights = sum(layer.weights.size for part in seen for layer in part.layers if isinstance(layer, Dense))
    assert 0 < weights < 20_000
    assert all(0 < one.traced < 1 for one in costs if one.kind == "dense")


@pytest.mark.parametrize("path", ROUTED, ids=lambda path: path.stem)
def test_every_routed_design_names_what_it_was(path: Path) -> None:
    facts = json.loads(path.read_text())
    assert facts["name"] == path.stem
    assert "lut4" in facts or "lut6" in facts
    assert {"ff", "fmax_mhz", "device", "seed", "verilog", "model"} <= facts.keys()


def test_the_published_error_meets_the_goal() -> None:
    assert FAMILIES["ecp5"].designs >= 12
    assert FAMILIES["ecp5"].error[0] < 15


def test_totals_are_the_layers_and_what_is_around_them() -> None:
    found = estimate(mlp(4, sizes=(32, 16, 8)), load_target("fpga-ecp5-25k"), "rtl")
    layers = sum(layer.lut for layer in found.layers)
    assert layers - len(found.layers) <= found.lut
    assert (found.ii, found.bram, found.dsp) == (1, 0, 0)
    assert found.latency_ns == pytest.approx(found.latency_cycles * 1e3 / (found.fmax_mhz or 0), rel=0.01)


def test_fewer_registers_between_adders_take_fewer_clocks() -> None:
    fast, slow = (
        estimate(
            mlp(4), load_target("fpga-ecp5-25k").model_copy(update={"options": {"latency_cutoff": n}}), "rtl"
        )
        for n in (1.0, 8.0)
    )
    assert fast.latency_cycles > slow.latency_cycles
    assert fast.ff > slow.ff


def saved(tmp_path: Path, model: ir.Model) -> str:
    path = tmp_path / "net.onnx"
    onnx.save(ir.to_proto(model), path)
    return str(path)


def small(tmp_path: Path, lut: int) -> str:
    path = tmp_path / "small.toml"
    path.write_text(f'extends = "fpga-ecp5-25k"\nname = "small"\n[resources]\nlut = {lut}\n')
    return str(path)


def test_what_does_not_fit_is_told_with_layer_and_ways(tmp_path: Path) -> None:
    model = saved(tmp_path, mlp(6, sizes=(32, 16, 8)))
    report = estimate_recipe(Recipe.parse({"model": model, "target": small(tmp_path, 8000)}, place="test"))
    dense = [layer for layer in read_network(mlp(6, sizes=(32, 16, 8))).layers if isinstance(layer, Dense)]
    assert report.fits is False
    assert f"because layer {dense[0].name!r}" in report.verdict
    assert any("bits" in way for way in report.ways)
    assert "--target fpga-ecp5-25k" in report.ways


def test_what_fits_is_told_with_shares(tmp_path: Path) -> None:
    model = saved(tmp_path, mlp(3))
    report = estimate_recipe(Recipe.parse({"model": model, "target": "fpga-ecp5-25k"}, place="test"))
    assert (report.fits, report.ways, report.origin) == (True, (), "estimated")
    assert "% of its LUT" in report.verdict


def test_fewer_bits_are_estimated_to_need_less(tmp_path: Path) -> None:
    found = estimate(mlp(6, sizes=(32, 16, 8)), ecp5(lut=100), "rtl")
    counts = [other.lut for other in found.alternatives if "bits" in other.what]
    assert counts == sorted(counts, key=lambda n: -(n or 0))
    assert (counts[0] or 0) < found.lut


def test_the_folded_engine_is_estimated_with_its_own_clocks() -> None:
    from pared.backends.fpga.folded.folding import choose
    from pared.backends.fpga.folded.program import lines_of
    from pared.backends.fpga.folded.tasks import tasks_of

    model, target = mlp(4, sizes=(32, 16, 8)), load_target("fpga-ecp5-25k")
    found = estimate(model, target, "folded")
    tasks = tasks_of(read_network(model))
    design = choose(tasks, lines_of(tasks), target.resources)
    assert (found.latency_cycles, found.ii) == (design.program.clocks, design.program.clocks)
    assert (found.bram, found.dsp) == (design.needs.bram, design.needs.dsp)


def test_where_not_even_the_least_folded_engine_fits_the_verdict_says_so(tmp_path: Path) -> None:
    model = saved(tmp_path, mlp(4))
    given = {"model": model, "target": small(tmp_path, 10), "engine": "folded"}
    assert estimate_recipe(Recipe.parse(given, place="test")).fits is False


def test_families_without_routed_designs_are_refused() -> None:
    target = load_target("fpga-ecp5-25k")
    other = target.model_copy(update={"isa": target.isa.model_copy(update={"arch": "other"})})
    with pytest.raises(ParedError, match="no routed designs") as caught:
        estimate(mlp(3), other, "rtl")
    assert caught.value.reason == "fpga-estimate"


def test_targets_without_hardware_have_no_estimate(tmp_path: Path) -> None:
    with pytest.raises(ParedError, match="no hardware") as caught:
        estimate_recipe(Recipe.parse({"model": saved(tmp_path, mlp(3)), "target": "cpu"}, place="test"))
    assert caught.value.reason == "estimate-backend"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_bars_are_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from pared.compiler.driver.estimate_plot import draw

    recipe = Recipe.parse({"model": saved(tmp_path, mlp(3)), "target": "fpga-ecp5-25k"}, place="test")
    draw(estimate_recipe(recipe), tmp_path / f"bars.{suffix}")
    assert (tmp_path / f"bars.{suffix}").stat().st_size > 1000
