"""Layers cut into blocks, one per core, on devices whose cores are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ....compiler.device import Device
from .records import Layout, Misfit, Placed
from .rules import check
from .storage import STORAGES, Block, Need
from .views import Fan, Image, View, reach

_ROUNDS = 24


@dataclass(frozen=True)
class Cut:
    """A layer in blocks.

    Attributes:
        view: the layer.
        blocks: in order: channels outermost, then rows, then columns.
        channel_parts: how many ranges of channels there are.
    """

    view: View
    blocks: tuple[Block, ...]
    channel_parts: int


@dataclass(frozen=True)
class Cap:
    """What a block may have at most, so that its axons out suffice."""

    neurons: int
    pixels: int


def place(network: Sequence[View], device: Device) -> Layout:
    """Cut layers so that every block fits a core; axons out depend on how the next layers are cut."""
    misfits = []
    for view in network:
        fan_out = sum(fan.source == view.name for other in network for fan in other.fans)
        misfits += check(view, device.layer, fan_out)
    limits = dict(device.cores[0].limits)
    cuts, short = _settle(network, device, limits)
    placed, core = [], 0
    for cut in cuts.values():
        for block in cut.blocks:
            use = _use(cut, block, cuts, device)
            placed.append(Placed(core, cut.view.name, block.text(cut.view.image), use, limits))
            core += 1
    if core > device.core_count:
        misfits.append(_too_many(core, device.core_count, len(short)))
    return Layout(tuple(placed), (*misfits, *short), core, device.core_count)


def _too_many(need: int, have: int, without: int) -> Misfit:
    chips = -(-need // have)
    more = f", not counting {without} layers that no number of cores holds" if without else ""
    what = f"needs {need} cores, the device has {have}{more}"
    return Misfit(
        "", "cores", need, have, what, f"{chips} devices, or a network of {have / need:.0%} of the size"
    )


def _settle(
    network: Sequence[View], device: Device, limits: Mapping[str, int]
) -> tuple[dict[str, Cut], list[Misfit]]:
    """Cut again with smaller blocks where a block needs more axons out than there are."""
    caps = {view.name: Cap(view.neurons, view.image[1] * view.image[2]) for view in network}
    over: dict[str, Cap] = {}
    cuts: dict[str, Cut] = {}
    short: list[Misfit] = []
    for _ in range(_ROUNDS):
        cuts, short = _cut_all(network, device, limits, caps)
        over = dict(_over(cuts, device, limits))
        again = {name: cap for name, cap in over.items() if cap != caps[name]}
        if not again:
            break
        caps.update(again)
    short += [_axons_out(cuts[name].view, device, cuts, limits) for name in over]
    return {name: cut for name, cut in cuts.items() if name not in over}, short


def _over(cuts: Mapping[str, Cut], device: Device, limits: Mapping[str, int]) -> Iterator[tuple[str, Cap]]:
    """Yield layers with too many axons out, and the size that a block may have instead."""
    if "out_axons" not in limits:
        return
    for name, cut in cuts.items():
        uses = [(_use(cut, block, cuts, device)["out_axons"], block) for block in cut.blocks]
        need, worst = max(uses, key=lambda use: use[0])
        if need > limits["out_axons"]:
            yield name, _less(worst, limits["out_axons"] / need)


def _less(block: Block, share: float) -> Cap:
    """Return a cap of fewer pixels, as a pixel's channels share axons; of one pixel, of fewer neurons."""
    channels, height, width = block.size
    pixels = height * width
    if pixels > 1:
        return Cap(block.neurons, max(1, min(pixels - 1, int(pixels * share))))
    return Cap(max(1, min(channels - 1, int(channels * share))), 1)


def _axons_out(view: View, device: Device, cuts: Mapping[str, Cut], limits: Mapping[str, int]) -> Misfit:
    need = max(_use(cuts[view.name], block, cuts, device)["out_axons"] for block in cuts[view.name].blocks)
    return Misfit(
        view.name, "out_axons", need, limits["out_axons"],
        f"one neuron needs {need} axons out, a core has {limits['out_axons']}", "a next layer on fewer cores",
    )  # fmt: skip


def _cut_all(
    network: Sequence[View], device: Device, limits: Mapping[str, int], caps: Mapping[str, Cap]
) -> tuple[dict[str, Cut], list[Misfit]]:
    cuts: dict[str, Cut] = {}
    short: list[Misfit] = []
    for view in network:
        parts = {fan.source: cuts[fan.source].channel_parts for fan in view.fans if fan.source in cuts}
        cut = _cut(view, device, limits, caps[view.name], parts)
        if cut is None:
            short += _smallest(view, device, limits, parts)
        else:
            cuts[view.name] = cut
    return cuts, short


def _smallest(
    view: View, device: Device, limits: Mapping[str, int], parts: Mapping[str, int]
) -> Iterator[Misfit]:
    """Say which limits a single neuron of the layer exceeds."""
    block = Block((0, 1), (0, 1), (0, 1))
    need = _inside(view, block, device, parts)
    for name, have in limits.items():
        if need.get(name, 0) > have:
            what = f"one neuron needs {need[name]} {name.replace('_', ' ')}, a core has {have}"
            yield Misfit(
                view.name, name, need[name], have, what, f"at most {have / need[name]:.0%} of the inputs"
            )


def _cut(
    view: View, device: Device, limits: Mapping[str, int], cap: Cap, parts: Mapping[str, int]
) -> Cut | None:
    """Return the cut into the fewest blocks that fit; the largest block decides."""
    neurons = min(cap.neurons, limits.get("neurons", cap.neurons))
    for sizes in _sizes(view.image, Cap(neurons, cap.pixels)):
        blocks = tuple(_blocks(view.image, sizes))
        middle = blocks[len(blocks) // 2]
        if not _fits(_inside(view, middle, device, parts), limits):
            continue
        if all(_fits(_inside(view, block, device, parts), limits) for block in blocks):
            return Cut(view, blocks, -(-view.image[0] // sizes[0]))
    return None


def _fits(need: Need, limits: Mapping[str, int]) -> bool:
    return all(need.get(name, 0) <= have for name, have in limits.items())


def _sizes(image: Image, cap: Cap) -> list[Image]:
    """Return block sizes under a cap, those first that make few blocks, channels whole."""
    channels, height, width = image
    found = []
    for c in _chunks(channels):
        for h in _chunks(height):
            for w in _chunks(width):
                if c * h * w <= cap.neurons and h * w <= cap.pixels:
                    count = -(-channels // c) * -(-height // h) * -(-width // w)
                    found.append((count, -c, -w, (c, h, w)))
    return [sizes for _, _, _, sizes in sorted(found)]


def _chunks(size: int) -> list[int]:
    """Return the sizes of equal parts, the whole first."""
    return sorted({-(-size // parts) for parts in range(1, size + 1)}, reverse=True)


def _blocks(image: Image, sizes: Image) -> Iterator[Block]:
    ranges = [
        [(start, min(size, start + step)) for start in range(0, size, step)]
        for size, step in zip(image, sizes, strict=True)
    ]
    for channels in ranges[0]:
        for rows in ranges[1]:
            for columns in ranges[2]:
                yield Block(channels, rows, columns)


def _inside(view: View, block: Block, device: Device, parts: Mapping[str, int]) -> Need:
    """Return what a block needs, axons out aside."""
    return STORAGES[device.storage](view, block, device, parts)


def _use(cut: Cut, block: Block, cuts: Mapping[str, Cut], device: Device) -> dict[str, int]:
    """Return all that a block needs."""
    parts = {fan.source: cuts[fan.source].channel_parts for fan in cut.view.fans if fan.source in cuts}
    use = dict(_inside(cut.view, block, device, parts))
    if "out_axons" in device.cores[0].limits:
        use["out_axons"] = sum(
            _axons(fan, block, other, device)
            for other in cuts.values()
            for fan in other.view.fans
            if fan.source == cut.view.name
        )
    return use


def _axons(fan: Fan, block: Block, other: Cut, device: Device) -> int:
    """Return the axon slots from a block to all the blocks of a layer that it feeds."""
    if fan.kind == "dense":
        return block.neurons * len(other.blocks)
    slots = 0
    for target in other.blocks:
        rows, columns = (reach(fan.window, axis, target.plane[axis], fan.image[1 + axis]) for axis in (0, 1))
        if _overlap(target.inputs(fan, other.view.image[0]), block.channels):
            slots += _overlap(rows, block.rows) * _overlap(columns, block.columns)
    return slots * device.constants.get("slots_per_axon", 1)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))
