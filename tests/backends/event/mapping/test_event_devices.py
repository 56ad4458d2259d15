"""Artifacts for devices: refusals, reports, energies; energies are worked out by hand."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.backend import EventBackend
from pared.backends.event.ledger import operations
from pared.backends.event.read import read
from pared.backends.event.simulate import graded, reals
from pared.compiler.backend import Payload
from pared.compiler.data import open_samples
from pared.compiler.errors import TargetError
from pared.compiler.ir.export import signature_of
from pared.compiler.pass_api import Context
from pared.targets import load_target, target_names

DEVICES = [name for name in target_names() if load_target(name).device is not None]


@cache
def lowered(name: str, bits: int, device: str, engine: str) -> Payload:
    model, target = quantized(name, bits), load_target(device)
    samples = open_samples({"image": images(8)}, signature_of(model), purpose="calibration")
    return EventBackend().lower(model, target, engine, Context(target=target, calibration=samples))


def mapping_of(payload: Payload):
    return json.loads(payload.attachments["mapping.json"])


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_names_a_source_for_cores_and_layers(device):
    target = load_target(device)
    assert {"cores", "layer"} & set(target.device.sources)
    assert ("synaptic_operation" in target.energy) != ("synaptic_operation" in target.energy_missing)


@pytest.mark.parametrize("device", DEVICES)
def test_an_artifact_runs_here_and_says_that_it_is_modelled(device, tmp_path):
    payload = lowered("digits_mlp", 4, device, "placed")
    payload.move_to(tmp_path)
    found = EventBackend().load(tmp_path, payload.engine, payload.options, None).run({"image": images(4)})
    graph = read(quantized("digits_mlp", 4))
    want = reals(graph, graded(graph, {"image": images(4)}))
    assert np.array_equal(found["logits"], want["logits"])
    report = mapping_of(payload)
    assert report["origin"] == "modelled: nothing was run on the device"
    assert report["fits"]
    assert any("modelled" in note for note in payload.notes)


def test_what_does_not_fit_is_refused_with_the_limit_and_the_way_out():
    with pytest.raises(TargetError) as found:
        lowered("digits_cnn", 8, "event-akida1000", "placed")
    assert found.value.reason == "event-does-not-fit"
    assert "weights take 8 bits, the device has 4" in str(found.value)
    assert "would fit: weights of 4 bits" in str(found.value)
    assert "--engine survey" in found.value.next_step


def test_a_survey_reports_what_does_not_fit():
    payload = lowered("digits_cnn", 8, "event-akida1000", "survey")
    assert any("weights take 8 bits, the device has 4" in note for note in payload.notes)
    report = mapping_of(payload)
    assert not report["fits"]
    first = next(misfit for misfit in report["misfits"] if misfit["limit"] == "weight_bits")
    assert (first["need"], first["have"], first["over_percent"]) == (8, 4, 100.0)


def test_a_survey_must_be_asked_for():
    assert list(EventBackend().engines(load_target("event-loihi1"))) == ["placed"]
    assert "survey" in load_target("event-loihi1").engines


def test_spikes_cost_what_they_count_and_events_once():
    # Loihi 1: 23.6 pJ per spike and synapse; SpiNNaker 2: 10 pJ per event and synapse.
    graph = read(quantized("digits_mlp", 4))
    counts = graded(graph, {"image": images(8)})
    layer = graph.layers[1]
    weights = layer.connections[0].synapses.weights
    source = counts[layer.connections[0].source]
    fan_out = np.count_nonzero(weights, axis=0)
    spikes, events = int((source * fan_out).sum()), int(((source != 0) * fan_out).sum())
    loihi = mapping_of(lowered("digits_mlp", 4, "event-loihi1", "placed"))["energy"]["layers"][1]
    spinnaker = mapping_of(lowered("digits_mlp", 4, "event-spinnaker2", "placed"))["energy"]["layers"][1]
    assert loihi["value"] == pytest.approx(spikes / 8 * 23.6e-3)
    assert spinnaker["value"] == pytest.approx(events / 8 * 10e-3)


def test_no_energy_is_null_with_the_reason():
    energy = mapping_of(lowered("digits_mlp", 4, "event-loihi2", "placed"))["energy"]
    assert energy["kind"] == "unavailable"
    assert energy["value"] is None
    assert "published none" in energy["why"]


def test_general_energies_by_hand():
    # 64 inputs of 4 bits, 128 neurons, 8192 weights of 4 bits: weights 4096 bytes, potentials 512, queue 256,
    # all in 8 KiB at 10 pJ per 32 bits. An operation: MAC 0.23, weight 4/32 * 10, potential twice 10.
    # Rival: multiplication 0.2 * 4 * 4 / 64, addition 0.03, weight and input (4 + 4) / 32 * 10.
    graph = read(quantized("digits_mlp", 4))
    counts = graded(graph, {"image": images(8)})
    done = operations(graph, graph.layers[0], counts)
    report = json.loads(lowered("digits_mlp", 4, "event-loihi1", "placed").attachments["events.json"])
    energy = report["ledger"][0]["energy"]
    assert (done.dense, done.weight_bits, done.input_bits) == (8 * 8192, 4, 4)
    assert energy["op_and_memory"] == pytest.approx((done.macs * (0.23 + 1.25 + 20) + done.events * 10) / 8e3)
    assert energy["rival_op_count"] == pytest.approx(8.192 * (0.03 + 0.2 * 16 / 64))
    assert energy["rival_op_and_memory"] == pytest.approx(8.192 * (0.03 + 0.2 * 16 / 64 + 2.5))
    spikes = (done.spikes * (0.03 + 1.25 + 20) + done.spike_events * 10) / 8e3
    assert energy["spikes_op_and_memory"] == pytest.approx(spikes)


def test_uneven_thresholds_are_named_where_neurons_have_one():
    report = mapping_of(lowered("digits_mlp", 4, "event-speck2f", "placed"))
    graph = read(quantized("digits_mlp", 4))
    uneven = [
        layer.name
        for layer in graph.layers
        if layer.ladder is not None and np.any(np.diff(layer.ladder.thresholds, 2, axis=1))
    ]
    assert all(name in report["differs"][-1] for name in uneven)


def test_without_calibration_energy_is_unavailable_and_the_placement_there():
    model, target = quantized("digits_mlp", 4), load_target("event-loihi1")
    payload = EventBackend().lower(model, target, "placed", Context(target=target))
    report = mapping_of(payload)
    assert report["energy"]["value"] is None
    assert report["cores"] == {"needed": 3, "available": 128}


def test_a_key_of_a_device_that_is_unknown_is_named_with_valid_ones(tmp_path):
    text = 'extends = "event-loihi1"\nname = "own"\n[device]\nplacemnt = "blocks"\n'
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(TargetError, match="placement") as found:
        load_target(tmp_path / "own.toml")
    assert found.value.reason == "target-key"
