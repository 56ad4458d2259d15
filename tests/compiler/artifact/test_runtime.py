import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from tiny_artifact import INPUTS, OUTPUTS, manifest, payload, write

from pared.compiler import runtime
from pared.compiler.artifact.manifest import EngineRecord
from pared.compiler.artifact.write import ArtifactWriter
from pared.compiler.errors import ArtifactError, DataError

SAMPLE_1_0 = Path(__file__).parent / "data" / "v1.0"


def test_dict_in_dict_out(artifact):
    with runtime.load(artifact) as model:
        assert [model.run(inputs)["y"].tolist() for inputs in INPUTS] == [
            want["y"].tolist() for want in OUTPUTS
        ]


def test_the_sample_of_schema_1_0_reproduces_its_golden_outputs():
    with runtime.load(SAMPLE_1_0, threads=1) as model:
        golden = model.artifact.golden()
        assert len(golden) == 2
        for inputs, outputs in golden:
            assert model.run(inputs)["y"].tolist() == outputs["y"].tolist()


def test_the_signature_is_the_manifests(artifact):
    with runtime.load(artifact) as model:
        assert model.signature == model.artifact.signature
        assert model.signature.inputs[0].shape == ("N", 2)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "input-names"),
        ({"X": INPUTS[0]["x"]}, "input-names"),
        ({"x": np.zeros((1, 3), np.float32)}, "input-shape"),
        ({"x": np.zeros((1, 2), np.float64)}, "input-dtype"),
    ],
)
def test_wrong_inputs_are_refused(artifact, inputs, reason):
    with runtime.load(artifact) as model, pytest.raises(DataError, match="'x'") as caught:
        model.run(inputs)
    assert caught.value.reason == reason


def test_wrong_inputs_are_refused_after_right_ones(artifact):
    with runtime.load(artifact) as model:
        model.run(INPUTS[0])
        with pytest.raises(DataError):
            model.run({"x": np.zeros((1, 2), np.float64)})
        with pytest.raises(DataError):
            model.run({"x": np.zeros((2, 3), np.float32)})


def test_strided_inputs_give_the_same_after_contiguous_ones(artifact):
    strided = np.array([[1.0, -2.0], [0.0, 0.0]], np.float32).T[:, :1].T
    with runtime.load(artifact) as model:
        assert model.run(INPUTS[0])["y"].tolist() == model.run({"x": strided})["y"].tolist()


def test_a_closed_model_refuses_to_run(artifact):
    model = runtime.load(artifact)
    model.close()
    model.close()
    with pytest.raises(ArtifactError, match="was closed"):
        model.run(INPUTS[0])


def test_threads_may_run_at_once(artifact):
    wrong = []

    def work() -> None:
        for _ in range(50):
            for inputs, want in zip(INPUTS, OUTPUTS, strict=True):
                if model.run(inputs)["y"].tolist() != want["y"].tolist():
                    wrong.append(inputs)

    with runtime.load(artifact, threads=1) as model:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


def test_zero_threads_are_refused(artifact):
    with pytest.raises(ValueError, match="at least 1"):
        runtime.load(artifact, threads=0)


def test_an_unknown_backend_is_refused(tmp_path):
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add("model.onnx", payload())
        engine = EngineRecord(backend="abacus", name="beads")
        writer.commit(manifest().model_copy(update={"engine": engine}))
    with pytest.raises(ArtifactError, match="'abacus'") as caught:
        runtime.load(tmp_path / "out")
    assert caught.value.reason == "artifact-backend"


def test_a_payload_that_contradicts_the_manifest_is_refused(tmp_path):
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add("model.onnx", payload())
        found = manifest()
        port = found.signature.inputs[0].model_copy(update={"dtype": "INT8"})
        signature = found.signature.model_copy(update={"inputs": (port,)})
        writer.commit(found.model_copy(update={"signature": signature}))
    with pytest.raises(ArtifactError, match="disagree") as caught:
        runtime.load(tmp_path / "out")
    assert caught.value.reason == "artifact-signature"


def test_a_missing_payload_is_refused(tmp_path):
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.commit(manifest())
    with pytest.raises(ArtifactError, match=r"has no model\.onnx"):
        runtime.load(tmp_path / "out")


def test_an_exchange_while_loading_loads_the_new_one(artifact, monkeypatch):
    real, calls = runtime.open_artifact, []

    def opened_late(path):
        found = real(path)
        if not calls:
            calls.append(path)
            write(artifact, seed=7)
        return found

    monkeypatch.setattr(runtime, "open_artifact", opened_late)
    with runtime.load(artifact) as model:
        assert model.artifact.manifest.seed == 7


def test_loading_needs_neither_onnx_nor_the_ir(artifact):
    code = (
        "import sys; from pared.compiler import runtime\n"
        f"runtime.load({str(artifact)!r}, threads=1)\n"
        "print(*sorted({'onnx', 'onnx_ir', 'onnxscript', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_zip_loads_and_runs(artifact, tmp_path):
    path = shutil.make_archive(str(tmp_path / "packed"), "zip", artifact)
    with runtime.load(path) as model:
        assert model.run(INPUTS[0])["y"].tolist() == OUTPUTS[0]["y"].tolist()


def test_any_mapping_may_hold_the_inputs(artifact):
    with runtime.load(artifact) as model:
        for _ in range(2):
            assert model.run(MappingProxyType(INPUTS[0]))["y"].tolist() == OUTPUTS[0]["y"].tolist()
