"""Engine `ort` on GPU targets: onnxruntime's CUDA provider or a refusal, never the CPU in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pared
from pared.backends.gpu import ort as engine
from pared.backends.gpu.backend import GpuBackend
from pared.compiler import ort
from pared.compiler.errors import ArtifactError, DataError, MissingTool, UnsupportedOp
from pared.compiler.ort_provider import Provider, has_provider
from pared.compiler.ort_run import PAYLOAD
from pared.compiler.pass_api import Context
from pared.targets import load_target

TEXT = '<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }'
OTHER = "AzureExecutionProvider"

without_cuda = pytest.mark.skipif(engine.installed(), reason="this onnxruntime has the CUDA provider")
with_another = pytest.mark.skipif(not has_provider(OTHER), reason="onnxruntime has no second provider")


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CPU for the device, CPU fallback allowed: everything but the device."""
    make = ort.make_session
    monkeypatch.setattr(engine, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(ort, "make_session", lambda path, threads, provider: make(path, threads=threads))


@without_cuda
def test_without_the_provider_the_engine_is_not_offered() -> None:
    assert "ort" not in GpuBackend().engines(load_target("gpu-cuda-sm90"))


@without_cuda
@pytest.mark.parametrize("arch", ["sm80", "sm89", "sm90"])
def test_asking_for_it_without_the_provider_names_what_is_missing(arch: str, tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="CUDAExecutionProvider") as caught:
        pared.compile(
            onnx.parser.parse_model(TEXT), target=f"gpu-cuda-{arch}", engine="ort", output=tmp_path / "a"
        )
    assert caught.value.reason == "ort-provider-missing"
    assert not (tmp_path / "a").exists()


@without_cuda
def test_loading_without_the_provider_refuses(tmp_path: Path) -> None:
    (tmp_path / PAYLOAD).write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    with pytest.raises(MissingTool, match="CUDAExecutionProvider"):
        GpuBackend().load(tmp_path, "ort", {}, None)


@with_another
def test_nodes_that_a_provider_leaves_out_are_not_run_on_the_cpu() -> None:
    """Of the providers in CPU builds, one takes no node of this graph."""
    with pytest.raises(UnsupportedOp, match=OTHER) as caught:
        ort.make_session(model(), provider=Provider(OTHER))
    assert caught.value.reason == "ort-provider-refused"


def test_a_payload_runs_and_checks_its_inputs(pretend: None, tmp_path: Path) -> None:
    target = load_target("gpu-cuda-sm90")
    payload = GpuBackend().lower(model(), target, "ort", Context())
    payload.move_to(tmp_path)
    loaded = GpuBackend().load(tmp_path, payload.engine, payload.options, None)
    x = np.array([[-1, 0, 2], [3, -4, 5]], np.float32)
    assert np.array_equal(loaded.run({"x": x})["y"], np.maximum(x, 0))
    with pytest.raises(DataError, match="x"):
        loaded.run({"x": x[:, :2]})
    loaded.close()


def test_the_payload_says_how_it_is_run(pretend: None) -> None:
    payload = engine.lower(model())
    assert payload.options == {
        "provider": "CPUExecutionProvider", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE",
    }  # fmt: skip


def test_the_asked_device_and_options_reach_the_provider(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Provider] = []

    def note(path: Path, threads: int, provider: Provider) -> None:
        seen.append(provider)
        raise MissingTool("x", "x", "x")

    monkeypatch.setattr(ort, "make_session", note)
    (tmp_path / PAYLOAD).write_bytes(b"")
    with pytest.raises(MissingTool):
        engine.load(tmp_path, {"provider": engine.PROVIDER, "use_tf32": "0", "device": 2})
    assert seen == [Provider(engine.PROVIDER, {"use_tf32": "0", "device_id": "2"})]


def test_a_missing_payload_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        GpuBackend().load(tmp_path, "ort", {}, None)
