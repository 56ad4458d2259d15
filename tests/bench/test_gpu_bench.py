"""The benchmark for GPUs, as far as no GPU is needed: equal networks, checks, limits on time, the page."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from pared.backends.reference import evaluate
from pared.bench.gpu import build, nets, onnx_nets, page, power, processes, sheets, workloads
from pared.bench.gpu.products import Chain, Product
from pared.bench.gpu.run import Plan, Session, code_for
from pared.compiler.ir.importer import import_model
from pared.compiler.ort import make_session, run_session
from pared.compiler.records import Metric, Origin

HERE = Path(page.__file__).parent
TINY = {name: workload.tiny() for name, workload in workloads.WORKLOADS.items()}
NETS = [name for name, what in TINY.items() if isinstance(what, nets.Net)]


def test_networks_are_as_big_as_their_papers_say() -> None:
    """4.1 and 0.3 billion multiply-accumulates; 25.5, 3.5 and 85 million weights (see nets.py)."""
    made = [nets.resnet50(), nets.mobilenet_v2(), nets.encoder()]
    assert [round(net.macs / 1e9, 1) for net in made] == [4.1, 0.3, 11.2]
    assert [round(net.parameters / 1e6, 1) for net in made] == [25.5, 3.5, 85.1]


def test_rows_of_an_input_do_not_depend_on_the_batch() -> None:
    net = TINY["bert"]
    assert np.array_equal(net.sample(3)[2], net.sample(5)[2])


def test_outputs_repeat_with_an_odd_period_and_only_in_big_arrays() -> None:
    w = nets.repeating(np.random.default_rng(0), (256, 128), 1.0)
    assert np.array_equal(w[3], w[20])
    assert not np.array_equal(w[3], w[19])
    small = nets.repeating(np.random.default_rng(0), (64, 64), 1.0)
    assert not np.array_equal(small[3], small[20])


def run_onnx(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run_session(make_session(model.SerializeToString()), {"x": x})["y"]


@pytest.mark.parametrize("name", NETS)
def test_onnx_and_torch_compute_the_same(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from pared.bench.gpu.torch_nets import TorchNet

    net = TINY[name]
    x = net.sample(2)
    with torch.no_grad():
        want = TorchNet(net, torch.float32, "cpu")(torch.from_numpy(x)).numpy()
    got = run_onnx(onnx_nets.net_model(net, 2), x)
    # Sums of at most 1000 floats in another order, a dozen layers: 2^-24 * sqrt(1000) * 12.
    assert np.abs(got - want).max() <= 2.3e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", ["gemv_b32", "gemv_b128"])
def test_the_chain_means_the_same_in_onnx_and_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from pared.bench.gpu.torch_nets import HalfChain, PackedChain

    chain = TINY[name]
    assert isinstance(chain, Chain)
    want = chain.sample()
    for matrix in chain.real():
        want = want @ matrix
    x = chain.sample().astype(np.float16)
    packed, half = (
        made(chain, "cpu")(torch.from_numpy(x)).float().numpy() for made in (PackedChain, HalfChain)
    )
    graph = run_onnx(onnx_nets.chain_model(chain), x).astype(np.float32)
    for got in (packed, half, graph):
        # onnxruntime sums products of float16 in float16 here: 2^-11 * sqrt(128) * 2 products.
        assert np.abs(got - want).max() <= 0.011 * np.abs(want).max()


def test_the_int8_product_is_the_reference_in_torch_and_by_hand() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from pared.bench.gpu.check import wanted
    from pared.bench.gpu.torch_nets import Int8Product

    product = TINY["gemm"]
    assert isinstance(product, Product)
    want, x = product.want(product.size), product.sample()
    assert len(np.unique(want)) > 50
    model = import_model(onnx_nets.product_model(product)).model
    assert np.array_equal(evaluate(model, {"x": x})["y"], want)
    assert np.array_equal(Int8Product(product, "cpu")(torch.from_numpy(x)).numpy(), want)
    assert np.array_equal(wanted(product, 1), want)


def test_a_wrong_result_is_not_measured() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from pared.bench.gpu.check import judge

    net = TINY["bert"]
    want = net.sample(1)
    assert judge(net, want * 1.01, want, None).ok
    for bad in (want * 1.05, np.where(want == want.max(), np.nan, want), want[:, :4]):
        assert not judge(net, bad, want, None).ok


def test_an_integer_network_is_judged_by_the_reference_rows() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from pared.bench.gpu.check import judge

    want = np.arange(12, dtype=np.float32).reshape(4, 3)
    kept = {"rows": np.array([0, 3]), "want": want[[0, 3]]}
    assert judge(TINY["resnet50"], want, want * 0, kept).ok
    off = want.copy()
    off[3, 1] += 1
    assert not judge(TINY["resnet50"], off, want * 0, kept).ok


def test_programs_pack_and_unpack_without_what_no_device_needs(tmp_path: Path) -> None:
    program = tmp_path / "made" / build.program_name("bert", "fp16", 1)
    program.mkdir(parents=True)
    for name in (build.META, "model.weights", "model.onnx"):
        (program / name).write_bytes(b"1")
    build.pack(tmp_path / "made", tmp_path / "p.tar.xz")
    build.unpack(tmp_path / "p.tar.xz", tmp_path / "there")
    assert sorted(p.name for p in (tmp_path / "there" / program.name).iterdir()) == [
        build.META,
        "model.weights",
    ]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ended = processes.run_one(processes.Task("hang", python(code)), 0.7, tmp_path)
    assert ended["state"] == "stopped after 1 s"
    time.sleep(2)
    assert not mark.exists()


def test_a_crash_costs_its_own_row(tmp_path: Path) -> None:
    tasks = [processes.Task("bad", python("raise SystemExit('oh')")), processes.Task("good", python("1"))]
    ended = processes.run_all(tasks, 2, 60, tmp_path, lambda text: None)
    assert ended["good"]["state"] == "done"
    assert ended["bad"]["state"] == "failed with 1"
    assert ended["bad"]["log"] == ["oh"]


def test_what_time_does_not_reach_is_said(tmp_path: Path) -> None:
    tasks = [processes.Task(str(n), python("import time; time.sleep(9)")) for n in range(2)]
    ended = processes.run_all(tasks, 1, 0.3, tmp_path, lambda text: None)
    assert [state["state"] for state in ended.values()] == [
        "stopped: time was up",
        "not started: time was up",
    ]


def measured_step(name: str, own: str, **more: object) -> dict[str, object]:
    own_times = {
        "state": "measured",
        "device_ms": 0.1,
        "host_ms": 0.2,
        "error": 0.001,
        "kernels": {"kernel_ms": 0.08},
    }
    energy = {"joules": 0.02, "reason": "NVML", "idle_watts": 70.0}
    peer = own_times | {"over": {own: {"host": 1.5, "device": 1.4}}, "mode": "max-autotune"}
    candidates = {
        own: own_times | {"energy": energy} | more,
        "torch.compile": peer | {"energy": {"joules": None}},
    }
    return {"workload": name, "batch": 1, "state": "done", "candidates": candidates}


def written(tmp_path: Path, *steps: dict[str, object], dry: bool = False) -> str:
    roofs = {"bytes_per_s": 3e12, "fp16": 8e14, "int8": 1.6e15, "source": "measured in the same run"}
    machine = {
        "device": "H100",
        "arch": "sm_90",
        "python": "3.12",
        "versions": {"torch": "2.11"},
        "driver": "580",
    }
    data = {
        "dry": dry,
        "machine": machine,
        "roofs": roofs,
        "steps": list(steps),
        "seconds": 500,
        "programs": {},
    }
    (tmp_path / "gpu.json").write_text(json.dumps(data))
    page.write_page(tmp_path / "gpu.json", tmp_path / "gpu.md")
    return (tmp_path / "gpu.md").read_text()


def test_the_page_states_goals_shares_and_nulls(tmp_path: Path) -> None:
    text = written(tmp_path, measured_step("bert", "pared fp16"), measured_step("gemm", "pared int8"))
    assert "| 1.50 x | yes |" in text
    # 2 * 4096^3 operations at 1.6e15 per second take 85.9 µs: 85.9 % of 0.1 ms, more than all of 0.08 ms.
    assert "| 85.9% | yes |" in text
    assert "85.9% / 107.4%" in text
    assert "20 mJ" in text
    assert "null" in text


def test_the_page_says_why_a_row_has_no_time(tmp_path: Path) -> None:
    wrong = {"state": "wrong", "reason": "error 0.3 against torch float32"}
    text = written(tmp_path, measured_step("resnet50", "pared fp16", **wrong))
    assert "wrong: error 0.3 against torch float32" in text
    text = written(tmp_path, {"workload": "bert", "batch": 64, "state": "no time left"})
    assert "Not measured: no time left." in text


def test_the_page_says_what_a_library_does(tmp_path: Path) -> None:
    steps = [
        measured_step("gemm", "pared int8", launches=2, library_products=1),
        measured_step("bert", "pared fp16", launches=60, library_products=0),
    ]
    text = " ".join(written(tmp_path, *steps).split())
    assert "pared int8 (gemm, batch 1): cuBLASLt was faster in 1 of 2 launches and does them." in text
    assert text.count("cuBLASLt") == 1


def test_a_dry_run_claims_no_goal(tmp_path: Path) -> None:
    text = written(tmp_path, measured_step("gemm", "pared int8"), dry=True)
    assert "dry run" in text.splitlines()[0]
    assert "Goals" not in text
    assert "%" not in text


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    page.write_page(tmp_path / "none.json", tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert "Nothing on this page has been measured" in text
    shipped = HERE.parents[1] / "docs" / "results"
    if not (shipped / "gpu.json").exists():
        assert (shipped / "gpu.md").read_text() == text


def test_predictions_name_what_bounds_them() -> None:
    h100 = sheets.DATA_SHEETS["H100 SXM (sm_90)"]
    gemm = sheets.load_of(Product(), "int8", 1)
    assert gemm.bound(h100) == "compute"
    assert gemm.seconds(h100) == pytest.approx(2 * 4096**3 / 1979e12)
    gemv = sheets.load_of(Chain(block=32), "w4a16", 1)
    assert gemv.bound(h100) == "memory"
    assert gemv.seconds(h100) == pytest.approx((2**23 + 2**20 + 2**14) / 3.35e12)


def test_energy_is_counted_per_inference_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def meter(bus_id: str, run: Callable[[], int], *, seconds: float) -> tuple[Metric, Metric]:
        seen.append(run())
        return (
            Metric("gpu_energy_per_run", 1500.0, "mJ", Origin.MEASURED, "NVML, idle subtracted"),
            Metric("gpu_idle_power", 70.0, "W", Origin.MEASURED, "NVML"),
        )

    queued: list[int] = []
    monkeypatch.setattr(power, "energy_metrics", meter)
    found = power.measure_energy("0000:01:00.0", lambda: queued.append(1), lambda: None, 10.0, 0.6)
    # Chunks of 50 ms hold five inferences of 10 ms.
    assert seen == [5] == [len(queued)]
    assert found == {"joules": 1.5, "idle_watts": 70.0, "reason": "NVML, idle subtracted"}


def test_without_nvml_energy_is_null_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARED_NVML", "libno-such-thing.so")
    found = power.measure_energy("0000:01:00.0", lambda: None, lambda: None, 1.0, 0.6)
    assert found["joules"] is None
    assert "libno-such-thing" in str(found["reason"])


@pytest.mark.parametrize(
    ("chip", "code"), [("sm_90", "sm_90"), ("sm_86", "sm_80"), ("sm_89", "sm_89"), ("sm_120", "sm_120")]
)
def test_a_chip_gets_the_newest_code_that_it_runs(chip: str, code: str) -> None:
    assert code_for(chip) == code


def test_programs_made_elsewhere_fill_up_what_fits(tmp_path: Path) -> None:
    for name, arch in (("bert-fp16-b1", "sm_80"), ("gemm-int8-b1", "sm_90")):
        (tmp_path / "given" / name).mkdir(parents=True)
        meta = {"arch": arch, "tiny": False}
        (tmp_path / "given" / name / build.META).write_text(json.dumps(meta))
    here = tmp_path / "programs"
    here.mkdir()
    plan = Plan(tmp_path, tmp_path, tmp_path / "given", [], 60.0, 1, dry=False)
    found = Session(plan)._take_given(here, "sm_86")
    assert found["bert-fp16-b1"] == "compiled elsewhere"
    assert "sm_90" in found["gemm-int8-b1"]
    assert [path.name for path in here.iterdir()] == ["bert-fp16-b1"]


def test_a_dry_run_does_not_write_into_the_results() -> None:
    command = [sys.executable, "-m", "pared.bench.gpu.run", "--dry", "--out", str(page.RESULTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another folder" in done.stderr
