"""pared sensitivity: one layer changed at a time, and honest figures."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
from cli_runner import Run

from pared.compiler.differences import Sqnr
from pared.compiler.driver.layer_time import packed_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ort import make_session, run_session

Effect = dict[str, object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two layers `first`, `second`, and samples."""
    rng = np.random.default_rng(0)
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,48] x) => (float[1,8] y)'
        "{ a = MatMul(x, u) r = Relu(a) y = MatMul(r, v) }"
    )
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name, model.graph.node[2].name = "first", "second"
    for name, shape in (("u", (48, 64)), ("v", (64, 8))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    x = rng.standard_normal((24, 48)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    np.savez(tmp_path / "t.npz", x=x, labels=rng.integers(0, 8, 24))
    return tmp_path


def effects(pared: Run, folder: Path, *args: object) -> list[Effect]:
    result = pared("sensitivity", "-m", folder / "m.onnx", "--calib-data", folder / "c.npz", "--json", *args)
    assert result.code == 0, result.err
    return cast("list[Effect]", result.json["effects"])


def test_only_the_layer_in_question_changes(pared: Run, folder: Path) -> None:
    found = effects(pared, folder, "--method", "prune{sparsity=0.5}", "--samples", 24)
    assert [(e["layer"], e["nonzero"]) for e in found] == [("first", 0.5), ("second", 0.5)]
    model = import_model(folder / "m.onnx").model
    weights = {name: model.graph.initializers[name] for name in ("u", "v")}
    x = np.load(folder / "c.npz")["x"]
    u, v = (weights[name].const_value.numpy() for name in ("u", "v"))  # type: ignore[union-attr]
    cut = np.where(np.abs(v) >= np.sort(np.abs(v).ravel())[v.size // 2], v, 0)
    hidden = np.maximum(x @ u, 0)
    total = Sqnr()
    total.add(hidden @ v, hidden @ cut)
    assert found[1]["sqnr_db"] == pytest.approx(total.sqnr_db, abs=1e-3)


def test_bytes_and_macs_are_those_of_the_layer(pared: Run, folder: Path) -> None:
    eight, low = effects(pared, folder, "--method", "quantize{bits=8}", "--method", "lowrank{rank=16}")[:2]
    assert (eight["bytes_before"], eight["bytes_after"]) == (4 * 48 * 64, 48 * 64)
    assert (low["macs_before"], low["macs_after"]) == (48 * 64, 16 * (48 + 64))
    assert low["bytes_after"] == 4 * 16 * (48 + 64)


def test_a_refusal_is_told_without_figures(pared: Run, folder: Path) -> None:
    found = effects(pared, folder, "--method", "lowrank{rank=16}")[1]
    assert "no rank 16 makes" in str(found["reason"])
    assert found["sqnr_db"] is None


def test_labels_give_the_drop_of_a_metric(pared: Run, folder: Path) -> None:
    found = effects(pared, folder, "--method", "prune{sparsity=0.9}", "--test-data", folder / "t.npz")
    assert all(isinstance(e["drop"], float) for e in found)


def test_times_are_measured_on_request_only(pared: Run, folder: Path) -> None:
    method = ("--method", "prune{sparsity=0.5}", "--exclude", "second")
    (idle,) = effects(pared, folder, *method)
    (timed,) = effects(pared, folder, *method, "--time")
    assert cast("Effect", idle["measured"])["value"] is None
    assert cast("float", cast("Effect", timed["measured"])["value"]) > 0
    assert cast("Effect", idle["predicted"])["origin"] == "estimated"


def test_the_view_names_layers_methods_and_refusals(pared: Run, folder: Path) -> None:
    result = pared(
        "sensitivity", "-m", folder / "m.onnx", "--calib-data", folder / "c.npz",
        "--method", "lowrank{rank=16}",
    )  # fmt: skip
    assert result.code == 0
    assert all(word in result.out for word in ("first", "second: no rank 16", "SQNR dB"))


def test_a_plot_is_drawn(pared: Run, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    target = folder / "plot.svg"
    effects(pared, folder, "--method", "prune{sparsity=0.5}", "--plot", target)
    assert "first" in target.read_text(encoding="utf-8") or target.stat().st_size > 1000


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--plot", "x.gif"), "plot-path"),
        (("--method", "prune{sparsity=2}"), "prune"),
        (("--method", "nonsense"), "unknown-pass"),
        (("--exclude", "nobody"), "exclude-unmatched"),
    ],
)
def test_bad_requests_are_refused(pared: Run, folder: Path, args: tuple[str, str], code: str) -> None:
    result = pared("sensitivity", "-m", folder / "m.onnx", "--calib-data", folder / "c.npz", *args)
    assert result.code == 2
    assert code in result.err


def test_packed_bytes_count_widths() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8] x) => (float[1,4] y)'
        "<int8[8,4] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}, float s = {0.5}>"
        "{ d = DequantizeLinear(w, s) y = MatMul(x, d) }"
    )
    model = import_model(onnx.parser.parse_model(text)).model
    assert packed_bytes(model) == 32
    assert run_session(make_session(model), {"x": np.ones((1, 8), np.float32)})["y"].shape == (1, 4)
