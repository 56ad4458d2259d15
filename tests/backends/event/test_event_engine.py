from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.backend import EventBackend
from pared.backends.event.build import _VNNI, build, compiler
from pared.backends.event.engine import EventExecutable
from pared.backends.event.native import NativeGraph
from pared.backends.event.read import read
from pared.backends.event.simulate import encode, graded
from pared.compiler.errors import ArtifactError, DataError, TargetError, UnsupportedOp
from pared.compiler.ir.importer import import_model
from pared.compiler.machine import find_machine
from pared.compiler.pass_api import Context
from pared.targets import load_target

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.fixture(scope="session", params=["portable", "vnni"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = _VNNI if request.param == "vnni" else ()
    if not set(features) <= set(find_machine().cpu_features):
        pytest.skip("this CPU lacks VNNI")
    path = tmp_path_factory.mktemp("event") / "model.so"
    path.write_bytes(build(features) or b"")
    return path


@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_resnet"])
def test_the_kernels_give_the_same_integers_in_every_layer(library, name, bits, mode):
    graph, x = read(quantized(name, bits)), images(16)
    want = graded(graph, {"image": x})
    native = NativeGraph(graph, library, mode)
    for index, sample in enumerate(encode(graph.inputs[0], x)):
        native.run({graph.inputs[0].population: sample[None]})
        for layer in graph.layers:
            assert np.array_equal(native.counts(layer.name), want[layer.name][index]), layer.name


def test_equal_sources_give_equal_libraries():
    assert build(()) == build(())


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target, folder = load_target("event-cpu"), tmp_path_factory.mktemp("compiled")
    payload = EventBackend().lower(quantized("digits_mlp", 8), target, "graded", Context(target=target))
    for name, content in payload.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_compiled_model_runs_and_refuses_wrong_inputs(compiled):
    model = EventBackend().load(compiled, "graded", {}, None)
    assert isinstance(model, EventExecutable)
    assert model.native is not None
    assert model.run({"image": images(3)})["logits"].shape == (3, 10)
    assert model.run({"image": images(3)[:0]})["logits"].shape == (0, 10)
    with pytest.raises(DataError, match="image"):
        model.run({"image": images(3)[..., :7]})
    model.close()
    with pytest.raises(ArtifactError, match="closed"):
        model.run({"image": images(3)})


def test_without_a_library_numpy_gives_the_same_output(compiled, tmp_path):
    shutil.copy(compiled / "model.npz", tmp_path)
    fast, slow = (EventBackend().load(folder, "graded", {}, None) for folder in (compiled, tmp_path))
    assert np.array_equal(fast.run({"image": images(5)})["logits"], slow.run({"image": images(5)})["logits"])


def test_code_for_another_cpu_is_refused(compiled):
    with pytest.raises(TargetError, match="avx9000"):
        EventBackend().load(compiled, "graded", {"features": "avx9000"}, None)


def test_a_float_model_is_refused_with_the_reason():
    examples = Path(__file__).parents[3] / "examples" / "models"
    model = import_model(examples / "digits_mlp.onnx").model
    with pytest.raises(UnsupportedOp, match="events need quantized activations") as error:
        read(model)
    assert error.value.reason == "event-unsupported"
