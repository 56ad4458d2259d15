from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.build import _VNNI, build, compiler
from pared.backends.event.delta import DeltaGraph, NumpyDeltas
from pared.backends.event.graph import EventGraph, Integers
from pared.backends.event.read import read
from pared.backends.event.simulate import encode, graded
from pared.compiler.machine import find_machine

NAMES = ["digits_mlp", "digits_cnn", "digits_resnet"]


@pytest.fixture(scope="session", params=["portable", "vnni"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = _VNNI if request.param == "vnni" else ()
    if compiler() is None:
        pytest.skip("no C compiler")
    if not set(features) <= set(find_machine().cpu_features):
        pytest.skip("this CPU lacks VNNI")
    path = tmp_path_factory.mktemp("event") / "model.so"
    path.write_bytes(build(features) or b"")
    return path


def video(graph: EventGraph, frames: int) -> Integers:
    """Return counts of a moving image with noise, a repeated frame and a cut to another image."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.roll(images(2)[shift % 2], shift // 4, axis=2)[None] for shift in range(frames)])
    x[2] = x[1]
    x[3] = x[2] * (rng.random(x[2].shape) < 0.95)
    return encode(graph.inputs[0], x)


@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("name", NAMES)
def test_every_count_after_every_frame_is_that_of_the_whole_frame(library, name, bits, mode):
    graph = read(quantized(name, bits))
    frames, deltas = video(graph, 8), DeltaGraph(graph, library, mode)
    for frame in frames:
        deltas.step({graph.inputs[0].population: frame})
        want = counts_of(graph, frame)
        for layer in graph.layers:
            assert np.array_equal(deltas.counts(layer.name), want[layer.name][0]), layer.name


@pytest.mark.parametrize("name", NAMES)
def test_numpy_gives_the_same_and_counts_the_same_operations(library, name):
    graph = read(quantized(name, 8))
    fast, slow = DeltaGraph(graph, library, "events"), NumpyDeltas(graph)
    for index, frame in enumerate(video(graph, 6)):
        counts = {graph.inputs[0].population: frame}
        a, b = fast.step(counts), slow.step(counts)
        assert all(np.array_equal(a[layer], b[layer]) for layer in a)
        for layer, work in slow.work().items():
            assert fast.work()[layer].changes == work.changes
            if index and work.operations:
                assert fast.work()[layer].operations == work.operations


def test_a_repeated_frame_costs_nothing(library):
    graph = read(quantized("digits_cnn", 8))
    deltas, frame = DeltaGraph(graph, library), video(graph, 4)[0]
    first = deltas.step({graph.inputs[0].population: frame})
    assert any(work.operations for work in deltas.work().values())
    again = deltas.step({graph.inputs[0].population: frame})
    assert all(work.operations == work.changes == 0 for work in deltas.work().values())
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_after_a_reset_the_next_frame_is_computed_whole(library):
    graph = read(quantized("digits_cnn", 8))
    deltas, frames = DeltaGraph(graph, library), video(graph, 4)[[0, 3]]
    name = graph.inputs[0].population
    want = [deltas.step({name: frame}) for frame in frames][1]
    deltas.reset()
    found = deltas.step({name: frames[1]})
    assert all(np.array_equal(found[key], want[key]) for key in want)
    assert deltas.work()[graph.layers[0].name].operations > 0


def counts_of(graph: EventGraph, frame: Integers) -> dict[str, Integers]:
    """Return all counts of one frame of counts."""
    from dataclasses import replace

    entry = replace(graph.inputs[0], scale=None, zero=0)
    return graded(replace(graph, inputs=(entry,)), {entry.name: frame[None]})
