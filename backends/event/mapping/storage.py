"""What a block of a layer takes in a core, by how the device stores synapses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from ....compiler.device import Device
from .views import Fan, Image, Span, View, reach

Need: TypeAlias = dict[str, int]
Pattern: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Block:
    """A box of a layer's neurons."""

    channels: Span
    rows: Span
    columns: Span

    @property
    def plane(self) -> tuple[Span, Span]:
        """Return rows and columns."""
        return self.rows, self.columns

    @property
    def size(self) -> Image:
        """Return channels, height and width."""
        (c0, c1), (y0, y1), (x0, x1) = self.channels, self.rows, self.columns
        return c1 - c0, y1 - y0, x1 - x0

    @property
    def neurons(self) -> int:
        """Return how many there are."""
        channels, height, width = self.size
        return channels * height * width

    def inputs(self, fan: Fan, outputs: int) -> Span:
        """Return the range of the source's channels that it reads; `outputs`: channels of the layer."""
        if fan.groups == 1:
            return 0, fan.image[0]
        if fan.kind == "one":
            first, last = self.channels[0] - fan.first, self.channels[1] - fan.first
            return max(0, first), max(0, min(fan.image[0], last))
        each = outputs // fan.groups
        per_group = fan.inputs_per_output
        return self.channels[0] // each * per_group, -(-self.channels[1] // each) * per_group

    def text(self, image: Image) -> str:
        """Say which neurons these are."""
        if self.size == image:
            return "all"
        names = ("channels", "rows", "columns")
        ranges = (self.channels, self.rows, self.columns)
        parts = [
            f"{name} {first}-{last - 1}"
            for name, (first, last), size in zip(names, ranges, image, strict=True)
            if last - first < size
        ]
        return ", ".join(parts)


Storage: TypeAlias = Callable[[View, Block, Device, Mapping[str, int]], Need]


def synapse_lists(view: View, block: Block, device: Device, parts: Mapping[str, int]) -> Need:
    """Return what Loihi takes: compartments, axons in, words of synapse memory.

    A source neuron of a dense layer has an axon of its own with a list of weights. Of an image, a pixel has
    one axon for all its channels, and pixels that reach their targets by the same taps share lists: weights
    with the index of the target each. `parts`: ranges of channels that a source is cut into, which send
    separately.
    """
    axons = words = 0
    for fan in view.fans:
        inputs = block.inputs(fan, view.image[0])
        count = inputs[1] - inputs[0]
        if not count:
            continue
        signs = 2 if fan.counts[0] < 0 and fan.is_input and not device.layer.signed_events else 1
        if fan.kind == "dense":
            axons += count * signs
            words += signs * count * _list_words(block.neurons, 0, device)
            continue
        down, across = (_patterns(fan, block.plane[axis], axis) for axis in (0, 1))
        pixels = len(down) * len(across)
        axons += signs * pixels * (parts.get(fan.source, 1) if fan.groups == 1 else 1)
        words += signs * _shared_words(fan, block, inputs, (down, across), device)
    return {"neurons": block.neurons, "in_axons": axons, "synapse_words": words}


def _shared_words(
    fan: Fan, block: Block, inputs: Span, patterns: tuple[list[Pattern], list[Pattern]], device: Device
) -> int:
    """Return the words of the lists of all kinds of source pixels, one list per channel."""
    count = inputs[1] - inputs[0]
    targets = block.size[0] if fan.groups == 1 else max(1, block.size[0] // count)
    down, across = (Counter(len(pattern) for pattern in set(found)) for found in patterns)
    words = 0
    for (taps_down, kinds_down), (taps_across, kinds_across) in product(down.items(), across.items()):
        synapses = taps_down * taps_across * targets
        words += (
            kinds_down * kinds_across * count * _list_words(synapses, device.constants["index_bits"], device)
        )
    return words


def _patterns(fan: Fan, outputs: Span, axis: int) -> list[Pattern]:
    """Return, for each source position along an axis that reaches the block: outputs from its first, taps."""
    window = fan.window
    step = window.strides[axis]
    first, last = reach(window, axis, outputs, fan.image[1 + axis])
    found = []
    for position in range(first, last):
        hits = []
        for tap in range(window.kernel[axis]):
            at, off = divmod(position + window.pads[axis] - tap * window.dilations[axis], step)
            if not off and outputs[0] <= at < outputs[1]:
                hits.append((at, tap))
        if hits:
            base = min(hit for hit, _ in hits)
            found.append(tuple(sorted((hit - base, tap) for hit, tap in hits)))
    return found


def _list_words(synapses: int, index_bits: int, device: Device) -> int:
    """Return the memory words of one list of synapses, a header before each run of them."""
    numbers = device.constants
    run, word = numbers["synapses_per_run"], numbers["word_bits"]
    each = numbers["weight_bits"] + index_bits
    full, rest = divmod(synapses, run)
    words = full * -(-(run * each + numbers["header_bits"]) // word)
    return words + (-(-(rest * each + numbers["header_bits"]) // word) if rest else 0)


def plain_bytes(view: View, block: Block, device: Device, parts: Mapping[str, int]) -> Need:
    """Return the bytes of weights (each once), channel parameters, potentials, and what is reserved.

    `parts` does not matter: events carry their source neuron.
    """
    numbers = device.constants
    total = numbers.get("reserved_bytes", 0)
    for fan in view.fans:
        inputs = block.inputs(fan, view.image[0])
        signs = 2 if fan.counts[0] < 0 and fan.is_input and not device.layer.signed_events else 1
        if fan.weights:
            kernel = fan.window.kernel[0] * fan.window.kernel[1]
            per_output = fan.image[0] if fan.kind == "dense" else fan.inputs_per_output * kernel
            bits = max(fan.weight_bits, numbers.get("weight_bits_min", 1))
            total += -(-signs * block.size[0] * per_output * bits // 8) if inputs[1] > inputs[0] else 0
    total += block.size[0] * numbers.get("bytes_per_channel", 0) + block.neurons * numbers.get(
        "bytes_per_neuron", 0
    )
    return {"neurons": block.neurons, "memory_bytes": total}


STORAGES: Mapping[str, Storage] = {"synapse-lists": synapse_lists, "bytes": plain_bytes}
