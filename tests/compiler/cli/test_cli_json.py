"""Keys of `--json`: every promised one is documented, every printed one is promised."""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
from cli_runner import Result, Run
from json_keys import documented, plain, promised, unknown
from reason_codes import collect, document

from pared.bench.bench import BenchReport
from pared.compiler.backend import Port
from pared.compiler.cli import compile as compile_module
from pared.compiler.cli import targets as targets_module
from pared.compiler.cli.app import VERBS
from pared.compiler.cli.compile import CompileOutput
from pared.compiler.cli.targets import TargetList
from pared.compiler.doctor import DoctorReport
from pared.compiler.driver.estimating import EstimateReport
from pared.compiler.driver.report import CompileReport
from pared.compiler.driver.sensitivity import SensitivityReport
from pared.compiler.inspect import InspectReport
from pared.compiler.ir.stats import Counts
from pared.compiler.machine import Machine
from pared.compiler.pass_docs import PassCatalog
from pared.compiler.rebuild import RebuildReport
from pared.compiler.records import Json, Metric
from pared.compiler.run_file import RunReport
from pared.compiler.verify.records import VerifyReport

SHARED: dict[str, type] = {"Metric": Metric, "Port": Port, "Counts": Counts, "Machine": Machine}
RECORDS: dict[str, type] = {
    "doctor": DoctorReport,
    "inspect": InspectReport,
    "sensitivity": SensitivityReport,
    "estimate": EstimateReport,
    "compile": CompileOutput,
    "run": RunReport,
    "verify": VerifyReport,
    "bench": BenchReport,
    "rebuild": RebuildReport,
    "passes": PassCatalog,
    "targets": TargetList,
}


@pytest.fixture(autouse=True)
def names_of_lazy_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules import these for annotations only, so that `pared --help` stays fast."""
    monkeypatch.setattr(compile_module, "CompileReport", CompileReport, raising=False)
    monkeypatch.setattr(targets_module, "Json", Json, raising=False)


def test_every_verb_has_a_record() -> None:
    assert RECORDS.keys() == VERBS.keys()


@pytest.mark.parametrize("verb", list(RECORDS))
def test_the_documented_keys_are_the_promised_ones(verb: str) -> None:
    assert documented(f"`pared {verb}`") == plain(promised(RECORDS[verb], SHARED.values()))


@pytest.mark.parametrize("name", list(SHARED))
def test_the_documented_keys_of_shared_objects_are_the_promised_ones(name: str) -> None:
    assert documented(name) == plain(promised(SHARED[name]))


def test_a_key_that_nobody_promised_is_noticed() -> None:
    assert unknown({"ok": True, "new": 1, "machine": {"odd": 2}}, promised(DoctorReport)) == {
        "new",
        "machine.odd",
    }


def test_docs_list_every_reason_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reasons.md").read_text(encoding="utf-8")
    missing = [code for code in collect() if f"| `{code}` |" not in text]
    assert missing == [], "run: python tests/compiler/cli/reason_codes.py > docs/reasons.md"


def test_the_list_of_reason_codes_can_be_written() -> None:
    assert "| `calibration-missing` | precision … quantizes activations" in document()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a convolutional model `m.onnx`, calibration data `c.npz` and labelled data `t.npz`."""
    place = tmp_path_factory.mktemp("json")
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (128, 4)))
    ]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1"], ["c"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["c"], ["r"], name="relu"),
        onnx.helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        onnx.helper.make_node("Gemm", ["f", "w2"], ["y"], name="gemm"),
    ]
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 3, 8, 8]), ("y", ["N", 4]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], initializer=weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), place / "m.onnx")
    x = rng.standard_normal((32, 3, 8, 8)).astype(np.float32)
    np.savez(place / "c.npz", x=x)
    np.savez(place / "t.npz", x=x, labels=rng.integers(0, 4, 32))
    return place


@pytest.fixture
def compiled(folder: Path, pared: Run) -> Result:
    """The int8 artifact at `out`, compiled once a module."""
    report = folder / "compile.json"
    if not report.exists():
        data = ("--calib-data", folder / "c.npz", "--precision", "int8", "--force")
        done = pared("compile", "-m", folder / "m.onnx", *data, "-o", folder / "out", "--json")
        assert done.code == 0, done.out
        report.write_text(done.out)
    return Result(0, report.read_text(), "")


def check(verb: str, done: Result) -> None:
    assert (done.code, done.err) == (0, ""), done.out + done.err
    assert unknown(typing.cast(Json, done.json), promised(RECORDS[verb])) == set()


def test_compile_prints_what_it_promises(compiled: Result) -> None:
    check("compile", compiled)


def test_inspect_prints_what_it_promises(folder: Path, pared: Run) -> None:
    check("inspect", pared("inspect", "-m", folder / "m.onnx", "--json"))


def test_inspect_of_a_quantized_payload_prints_what_it_promises(
    folder: Path, compiled: Result, pared: Run
) -> None:
    done = pared("inspect", "-m", folder / "out" / "model.onnx", "--json")
    check("inspect", done)
    assert done.json["quantization"]["forms"] == ["QDQ"]  # type: ignore[index,call-overload]


def test_run_prints_what_it_promises(folder: Path, compiled: Result, pared: Run) -> None:
    args = ("--input", folder / "c.npz", "--output", folder / "y.npz", "--json")
    check("run", pared("run", folder / "out", *args))


def test_verify_prints_what_it_promises(folder: Path, compiled: Result, pared: Run) -> None:
    args = ("--data", folder / "t.npz", "--reference", folder / "m.onnx", "--bisect", "--json")
    check("verify", pared("verify", folder / "out", *args))


def test_bench_prints_what_it_promises(folder: Path, compiled: Result, pared: Run) -> None:
    check("bench", pared("bench", folder / "out", "--iterations", 10, "--json"))


def test_rebuild_prints_what_it_promises(folder: Path, compiled: Result, pared: Run) -> None:
    check("rebuild", pared("rebuild", folder / "out", "--check", "--json"))


@pytest.mark.parametrize("verb", ["doctor", "passes", "targets"])
def test_a_list_prints_what_it_promises(verb: str, pared: Run) -> None:
    check(verb, pared(verb, "--json"))


def test_print_pipeline_prints_one_key(folder: Path, pared: Run) -> None:
    done = pared("compile", "-m", folder / "m.onnx", "-O0", "--print-pipeline", "--json")
    assert list(done.json) == ["pipeline"]
