from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from event_models import images, quantized, reference_counts

from pared.backends.event.pack import FILE, pack, unpack
from pared.backends.event.read import read
from pared.backends.event.simulate import graded, reals
from pared.compiler.errors import ArtifactError


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_resnet"])
def test_all_counts_and_logits_are_the_references_integers(name, bits):
    model = quantized(name, bits)
    graph = read(model)
    inputs = {"image": images(120 if name == "digits_resnet" else 540)}
    counts, want = graded(graph, inputs), reference_counts(model, graph, inputs)
    for layer in graph.layers:
        assert np.array_equal(counts[layer.name], want[layer.name]), layer.name


def test_a_packed_graph_comes_back_and_equal_graphs_give_equal_bytes(tmp_path):
    graph = read(quantized("digits_cnn", 4))
    content = pack(graph)
    (tmp_path / FILE).write_bytes(content)
    again = unpack(tmp_path / FILE)
    assert pack(again) == content == pack(graph)
    assert np.array_equal(again.layers[0].ladder.thresholds, graph.layers[0].ladder.thresholds)


@pytest.mark.parametrize("damage", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(ArtifactError, match="cannot read") as error:
        unpack(tmp_path / FILE)
    assert error.value.reason == "artifact-events"


def test_a_last_softmax_and_an_input_of_channels_last_are_the_hosts_business():
    model = quantized("digits_cnn", 8).clone()
    graph = model.graph
    scores, image = graph.outputs[0], graph.inputs[0]
    soft = ir.node("Softmax", [scores], attributes={"axis": -1}, name="soft")
    soft.outputs[0].name, soft.outputs[0].shape, soft.outputs[0].dtype = "soft", scores.shape, scores.dtype
    turned = ir.node("Transpose", [image], attributes={"perm": [0, 3, 1, 2]}, name="turned")
    turned.outputs[0].shape, turned.outputs[0].dtype = image.shape, image.dtype
    turned.outputs[0].name = "turned_image"
    for reader, index in list(image.uses()):
        if reader is not turned:
            reader.replace_input_with(index, turned.outputs[0])
    image.shape = ir.Shape([image.shape[0], 8, 8, 1])
    graph.insert_before(graph[0], turned)
    graph.append(soft)
    graph.outputs[0] = soft.outputs[0]
    found, x = read(model), images(20)
    got = reals(found, graded(found, {"image": x.transpose(0, 2, 3, 1)}))["soft"]
    logits = graded(read(quantized("digits_cnn", 8)), {"image": x})["logits"]
    assert np.array_equal(got.argmax(1), logits.argmax(1))
    assert np.allclose(got.sum(axis=1), 1, atol=1e-6)
