from __future__ import annotations

import numpy as np
from event_models import images, quantized

from pared.backends.event.ledger import ledger, operations
from pared.backends.event.read import read
from pared.backends.event.simulate import graded
from pared.targets import load_target


def test_operations_of_a_dense_layer_are_counted_by_hand():
    graph, x = read(quantized("digits_mlp", 4)), images(5)
    counts = graded(graph, {"image": x})
    layer, source = graph.layers[1], graph.layers[0].name
    found = operations(graph, layer, counts)
    w, q = layer.connections[0].synapses.weights, counts[source]
    products = [(w != 0) & (sample != 0)[None, :] for sample in q]
    assert found.macs == sum(int(product.sum()) for product in products)
    assert found.updates == sum(int(product.any(axis=1).sum()) for product in products)
    assert found.dense == 5 * w.size
    assert found.events == np.count_nonzero(q)
    assert found.acs == 0


def test_a_border_pixel_has_fewer_synapses():
    graph = read(quantized("digits_cnn", 4))
    counts = graded(graph, {"image": np.ones((1, 1, 8, 8), np.float32)})
    w = graph.layers[0].connections[0].synapses.weights
    want = sum(
        int(np.count_nonzero(w[:, :, ky, kx])) * (8 - abs(ky - 1)) * (8 - abs(kx - 1))
        for ky in range(3)
        for kx in range(3)
    )
    assert operations(graph, graph.layers[0], counts).macs == want


def test_energy_is_modelled_and_names_its_sources():
    graph = read(quantized("digits_mlp", 4))
    counts = graded(graph, {"image": images(5)})
    entry = ledger(graph, counts, load_target("event-cpu").energy)[0]
    assert entry["energy"]["kind"] == "modelled"
    assert "Horowitz" in entry["energy"]["constants"]["mac_int8"]
    assert entry["energy"]["op_count"] == entry["effective_macs"] * 0.23e-3


def test_energy_is_unavailable_without_constants():
    graph = read(quantized("digits_mlp", 4))
    counts = graded(graph, {"image": images(5)})
    assert ledger(graph, counts, {})[0]["energy"]["kind"] == "unavailable"
