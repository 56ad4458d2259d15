"""Placement on devices; numbers of digits_cnn at 4 bits are worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from event_models import quantized
from hypothesis import given
from hypothesis import strategies as st

from pared.backends.event.graph import Conv, Window
from pared.backends.event.mapping.filters import packed_bytes
from pared.backends.event.mapping.place import place
from pared.backends.event.mapping.views import views
from pared.backends.event.mapping.whole import match
from pared.backends.event.read import read
from pared.compiler.errors import TargetError
from pared.targets import load_target

# digits_cnn: image 1x8x8, conv 32 3x3, conv 64 3x3, max pooling 2x2, conv 64 3x3, global average, dense 10.
FIRST, SECOND, THIRD = 0, 1, 3


@pytest.fixture(scope="module")
def cnn():
    return read(quantized("digits_cnn", 4))


def parts_of(graph, target, index):
    layout = place(graph, load_target(target))
    return [part for part in layout.placed if part.layer == graph.layers[index].name]


def test_speck_memories_by_hand(cnn):
    # Second layer: 32 inputs * 2^(ceil log2 9 + log2 64) = 32 * 2^(4 + 6) = 32768 kernel entries,
    # 64 outputs * 2^(3 + 3) = 4096 neuron entries. Third: 64 * 2^10 = 65536, of 64 * 2^(2 + 2) = 1024.
    (second,), (third,) = parts_of(cnn, "event-speck2f", SECOND), parts_of(cnn, "event-speck2f", THIRD)
    assert second.use["kernel_entries"] == 32768
    assert second.use["neuron_entries"] == 4096
    assert third.use["kernel_entries"] == 65536
    assert third.use["neuron_entries"] == 1024


def test_speck_puts_layers_where_they_fit(cnn):
    for part in place(cnn, load_target("event-speck2f")).placed:
        assert all(need <= part.limits[name] for name, need in part.use.items())


def test_loihi_first_layer_by_hand(cnn):
    # 32 * 8 * 8 = 2048 neurons: two blocks of 1024. Rows 0 to 3 read rows 0 to 4 of the image: 5 * 8 pixels,
    # an axon each. Taps per row of the image: 2, 3, 3, 2, 1, of which both 3 are alike; per column 2, 3 (six
    # alike), 2. A list of n synapses of 8 + 10 bits in runs of 64 with a header of 10 bits, in 64-bit words:
    # 64 -> 19, 96 -> 29, 128 -> 38, 192 -> 57, 288 -> 86.
    # Rows with 2 taps: 38 + 57 + 38 = 133, twice; 3: 57 + 86 + 57 = 200; 1: 19 + 29 + 19 = 67: 533 words.
    # Axons out: 32 pixels to the 4 blocks of the second layer, two slots each.
    first, second = parts_of(cnn, "event-loihi1", FIRST)
    want = {"neurons": 1024, "in_axons": 40, "synapse_words": 533, "out_axons": 256}
    assert dict(first.use) == want
    assert (first.part, second.part) == ("rows 0-3", "rows 4-7")


def test_loihi_dense_layer_by_hand(cnn):
    # 10 neurons from 64 inputs: 64 lists of 10 synapses of 8 bits and a header, 90 bits: 2 words each.
    (part,) = parts_of(cnn, "event-loihi1", 5)
    assert dict(part.use) == {"neurons": 10, "in_axons": 64, "synapse_words": 128, "out_axons": 0}


def test_spinnaker_bytes_by_hand(cnn):
    # 32768 reserved, 64 * 32 * 9 weights of a byte, 64 channels of 8 bytes, 4096 neurons of 4 bytes.
    (part,) = parts_of(cnn, "event-spinnaker2", SECOND)
    assert part.use["memory_bytes"] == 32768 + 18432 + 512 + 16384


def test_loihi_2_keeps_kernels_once(cnn):
    (part,) = parts_of(cnn, "event-loihi2", SECOND)
    assert dict(part.use) == {"neurons": 4096, "memory_bytes": 18432 * 4 // 8}


def test_akida_places_pooling_with_the_convolution_before(cnn):
    layout = place(cnn, load_target("event-akida1000"))
    assert layout.fits
    assert [part.part for part in layout.placed if part.core < 0] == [
        "the unit for the first layer", "with the layer before", "with the layer before",
    ]  # fmt: skip


def test_akida_weights_fill_runs_as_the_vendor_reports():
    # (input channels, filters, kernel, bits) -> weight_size of akida 2.19.3, MapMode.Minimal, first processor
    seen = {
        (32, 32, 3, 4): 6400, (64, 64, 3, 4): 19200, (128, 64, 3, 4): 38400, (200, 32, 3, 4): 40000,
        (256, 16, 3, 4): 25600, (256, 128, 1, 4): 25600, (256, 52, 3, 2): 38400, (64, 256, 1, 4): 12800,
    }  # fmt: skip
    fan = views(read(quantized("digits_cnn", 4)))[SECOND].fans[0]
    device = load_target("event-akida1000").device
    for (inputs, filters, side, bits), want in seen.items():
        one = replace(fan, image=(inputs, 8, 8), weight_bits=bits)
        assert packed_bytes(one, filters, side, device) == want


def test_max_pooling_is_a_misfit_where_events_only_add_up(cnn):
    misfits = place(cnn, load_target("event-speck2f")).misfits
    assert [(m.layer, m.limit) for m in misfits] == [(cnn.layers[2].name, "max_pool")]


def test_widths_are_misfits_with_need_and_have():
    graph = read(quantized("digits_cnn", 8))
    misfits = place(graph, load_target("event-akida1000")).misfits
    assert ("weight_bits", 8, 4) in {(m.limit, m.need, m.have) for m in misfits}
    assert all(m.would_fit for m in misfits)


def test_what_would_fit_on_speck_does(cnn):
    layer = cnn.layers[THIRD]
    connection = layer.connections[0]
    wide = np.ones((128, 64, 3, 3), np.int32)
    found = misfit_of(cnn, THIRD, connection, wide)
    # 64 * 2^(4 + 7) = 131072 entries, the largest core has 65536: 64 outputs take 64 * 2^10.
    assert (found.need, found.have) == (131072, 65536)
    assert found.would_fit.startswith("at most 64 output channels")


def misfit_of(graph, index, connection, weights):
    synapses = Conv(weights, Window((3, 3), pads=(1, 1, 1, 1)))
    layer = graph.layers[index]
    wider = replace(
        layer, shape=(len(weights), *layer.shape[1:]), connections=(replace(connection, synapses=synapses),)
    )
    layers = (*graph.layers[:index], wider, *graph.layers[index + 1 :])
    layout = place(replace(graph, layers=layers), load_target("event-speck2f"))
    return next(m for m in layout.misfits if m.limit == "kernel_entries")


def test_every_neuron_lies_in_one_block(cnn):
    for target in ("event-loihi1", "event-loihi2", "event-spinnaker2"):
        layout = place(cnn, load_target(target))
        for view in views(cnn):
            parts = [part.use["neurons"] for part in layout.placed if part.layer == view.name]
            assert sum(parts) == view.neurons
        assert len({part.core for part in layout.placed}) == layout.cores_needed


def test_no_block_exceeds_a_limit(cnn):
    for target in ("event-loihi1", "event-loihi2", "event-spinnaker2"):
        for part in place(cnn, load_target(target)).placed:
            assert part.fill <= 1


def test_too_few_cores_are_a_misfit_of_the_network(cnn):
    target = load_target("event-loihi1")
    small = target.device.cores[0].model_copy(update={"count": 4})
    few = target.model_copy(update={"device": target.device.model_copy(update={"cores": (small,)})})
    found = [m for m in place(cnn, few).misfits if not m.layer]
    assert [(m.limit, m.need, m.have) for m in found] == [("cores", 13, 4)]


def test_axons_out_cut_blocks_smaller(cnn):
    target = load_target("event-loihi1")
    tight = {**target.device.cores[0].limits, "out_axons": 96}
    core = target.device.cores[0].model_copy(update={"limits": tight})
    less = target.model_copy(update={"device": target.device.model_copy(update={"cores": (core,)})})
    layout = place(cnn, less)
    assert all(part.use["out_axons"] <= 96 for part in layout.placed)
    assert layout.cores_needed > 13


def test_a_target_without_a_device_is_refused(cnn):
    with pytest.raises(TargetError, match="no \\[device\\] table") as found:
        place(cnn, load_target("event-cpu"))
    assert found.value.reason == "event-device"


@given(st.lists(st.lists(st.integers(0, 4), max_size=5, unique=True), max_size=5))
def test_matching_seats_as_many_layers_as_any_order_can(wishes):
    takers = {str(index): cores for index, cores in enumerate(wishes)}
    found = match(takers, 5)
    assert len(set(found.values())) == len(found)
    assert all(core in takers[name] for name, core in found.items())
    best = max(
        sum(seat in cores for seat, cores in zip(order, wishes, strict=False))
        for order in permutations(range(5))
    )
    assert len(found) == best
