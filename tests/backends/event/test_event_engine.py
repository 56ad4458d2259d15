from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.backend import EventBackend
from pared.backends.event.build import _VNNI, build, compiler
from pared.backends.event.engine import EventExecutable
from pared.backends.event.graph import (
    Connection,
    Conv,
    EventGraph,
    Input,
    Integers,
    Ladder,
    Layer,
    Output,
    Window,
)
from pared.backends.event.layout import winograd_pays
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
    payload.move_to(folder)
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


@pytest.mark.parametrize("mode", ["dense", "events"])
@pytest.mark.parametrize(("outputs", "inputs", "size"), [(70, 37, 13), (64, 64, 8), (16, 48, 6), (8, 16, 4)])
def test_a_3x3_layer_is_exact_at_borders_and_for_odd_sizes(library, mode, outputs, inputs, size):
    graph, x = one_conv(outputs, inputs, size), large_counts(inputs, size)
    native = NativeGraph(graph, library, mode)
    native.run({"x": x})
    assert np.array_equal(native.counts("y"), graded(graph, {"x": x})["y"][0])


def test_winograd_is_left_alone_where_sums_could_leave_its_26_bits():
    w = np.full((64, 2048, 3, 3), 127, np.int32)
    window = Window((3, 3), pads=(1, 1, 1, 1))
    assert not winograd_pays(Conv(w, window), (8, 8, 2048), (8, 8, 64))
    assert winograd_pays(Conv(w // 127, window), (8, 8, 2048), (8, 8, 64))


def test_winograd_takes_windows_of_3x3_with_stride_1_only():
    w = np.ones((64, 64, 3, 3), np.int32)
    sizes = ((16, 16, 64), (16, 16, 64))
    assert winograd_pays(Conv(w, Window((3, 3))), *sizes)
    assert not winograd_pays(Conv(w, Window((3, 3), (2, 2))), *sizes)
    assert not winograd_pays(Conv(w, Window((3, 3), dilations=(2, 2))), *sizes)
    assert not winograd_pays(Conv(w[:, :1], Window((3, 3)), 64), *sizes)


def one_conv(outputs: int, inputs: int, size: int) -> EventGraph:
    """Return a convolution with the largest weights and 8-bit counts."""
    rng = np.random.default_rng(outputs)
    w = rng.choice(np.array([-128, 127]), (outputs, inputs, 3, 3)).astype(np.int32)
    thresholds = np.arange(-100, 155)[None, :] * 1500
    layer = Layer(
        "y", (outputs, size, size), (Connection("x", Conv(w, Window((3, 3), pads=(1, 1, 1, 1)))),),
        rng.integers(-9000, 9000, outputs), Ladder(0, thresholds, np.array([1500.0])), np.ones(1),
        np.zeros(1), (-(2**30), 2**30),
    )  # fmt: skip
    entry = Input("x", "x", (inputs, size, size), None, 0, 0, 255, "UINT8")
    return EventGraph((entry,), (layer,), (Output("y", "y", layer.shape, "UINT8"),))


def large_counts(inputs: int, size: int) -> Integers:
    """Return counts at both ends of their range."""
    rng = np.random.default_rng(1)
    return rng.choice(np.array([0, 255]), (1, inputs, size, size)).astype(np.int64)
