"""Layers cut by output channels and image area over processors with memories for events and for weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ....compiler.device import Device, FirstLayer
from .records import Layout, Misfit, Placed
from .rules import check, kernel_side
from .views import Fan, View


@dataclass(frozen=True)
class Plan:
    """What a layer takes.

    Attributes:
        kind: of processor: `dense`, or `conv`, which all are; empty where the layer needs none.
        slices, areas: parts by output channels and by image area; a processor for each pair.
        use: of each processor.
        where: who computes it where no processor does.
    """

    kind: str
    use: dict[str, int]
    slices: int = 1
    areas: int = 1
    where: str = ""

    @property
    def processors(self) -> int:
        """Return how many it takes."""
        return self.slices * self.areas if self.kind else 0


def place(network: Sequence[View], device: Device) -> Layout:
    """Count the least processors for every layer; pooling and a first layer over an image need none."""
    misfits: list[Misfit] = []
    plans: dict[str, Plan] = {}
    for view in network:
        broken, plan = _judge(view, network, device)
        misfits += broken
        if plan is not None and not broken:
            plans[view.name] = plan
    wanted = sum(plan.processors for plan in plans.values())
    placed = _seat(plans, device)
    for kind in ("dense", "conv"):
        misfits += _crowded(kind, plans, device)
    notes = ("counts of processors are least ones: the vendor's mapping takes more",)
    return Layout(tuple(placed), tuple(misfits), wanted, device.core_count, notes)


def _crowded(kind: str, plans: dict[str, Plan], device: Device) -> Iterator[Misfit]:
    need = sum(plan.processors for plan in plans.values() if kind in (plan.kind, "conv"))
    have = len(_cores(device, kind))
    if need > have:
        what = f"needs {need} processors for {kind} layers at least, the device has {have}"
        yield Misfit("", "cores", need, have, what, "fewer channels or smaller images")


def _seat(plans: dict[str, Plan], device: Device) -> list[Placed]:
    """Give numbers to processors, to dense layers first as few processors take those."""
    free = _cores(device, "conv")
    seats: dict[str, list[int]] = {}
    for name, plan in sorted(plans.items(), key=lambda item: item[1].kind != "dense"):
        able = [core for core in _cores(device, plan.kind) if core in free] if plan.kind else []
        seats[name] = able[: plan.processors]
        free = [core for core in free if core not in seats[name]]
    limits = device.cores[0].limits
    placed = []
    for name, plan in plans.items():
        if not plan.kind:
            placed.append(Placed(-1, name, plan.where, {}, {}))
        for index, core in enumerate(seats[name]):
            here, area = divmod(index, plan.areas)
            part = f"slice {here + 1} of {plan.slices}, area {area + 1} of {plan.areas}"
            placed.append(Placed(core, name, part, plan.use, limits))
    return placed


def _cores(device: Device, kind: str) -> list[int]:
    """Return the numbers of the processors that take a kind of layer."""
    found: list[int] = []
    start = 0
    for group in device.cores:
        if kind in group.kinds:
            found += range(start, start + group.count)
        start += group.count
    return found


def _judge(view: View, network: Sequence[View], device: Device) -> tuple[list[Misfit], Plan | None]:
    """Return what a layer breaks, and what it takes unless its parts do not fit at all."""
    fan, first = view.fans[0], device.first_layer
    if fan.is_input and first is not None and fan.kind == "conv" and fan.image[0] in first.channels:
        return list(_first(view, fan, first)), Plan("", {}, where="the unit for the first layer")
    fan_out = sum(other_fan.source == view.name for other in network for other_fan in other.fans)
    broken = check(view, device.layer, fan_out)
    if fan.kind in ("max", "sum"):
        return broken + list(_pooling(view, fan, network)), Plan("", {}, where="with the layer before")
    if fan.kind == "dense":
        return broken + list(_flat(view, fan, device)), Plan("dense", {"input_bytes": _event_bytes(fan)})
    most = filters(fan, kernel_side(fan, even_padding=False), device)
    if most < 1:
        return [*broken, _too_deep(view, fan, device)], None
    return broken, _convolution(view, fan, most, device)


def _convolution(view: View, fan: Fan, most: int, device: Device) -> Plan:
    """Cut by image area until the events fit, and by output channels until the weights do."""
    total = _event_bytes(fan)
    areas, slices = -(-total // device.cores[0].limits["input_bytes"]), -(-view.image[0] // most)
    weights = packed_bytes(fan, min(most, view.image[0]), kernel_side(fan, even_padding=False), device)
    return Plan("conv", {"input_bytes": -(-total // areas), "weight_bytes": weights}, slices, areas)


def _too_deep(view: View, fan: Fan, device: Device) -> Misfit:
    need, have = (
        packed_bytes(fan, 1, kernel_side(fan, even_padding=False), device),
        device.cores[0].limits["weight_bytes"],
    )
    what = f"one filter over {fan.image[0]} channels takes {need} bytes, a processor has {have}"
    fewer = f"at most {fan.image[0] * have // need} input channels"
    return Misfit(view.name, "weight_bytes", need, have, what, fewer)


def filters(fan: Fan, side: int, device: Device) -> int:
    """Return how many filters' weights a processor holds."""
    run, have = device.constants["weights_per_run"], device.cores[0].limits["weight_bytes"]
    runs = have * 8 // (fan.image[0] * run * _power(fan.weight_bits))
    return runs * run // side**2


def packed_bytes(fan: Fan, count: int, side: int, device: Device) -> int:
    """Return the bytes of so many filters: per input channel, weights fill up whole runs."""
    run = device.constants["weights_per_run"]
    runs = -(-count * side**2 // run)
    return -(-fan.image[0] * runs * run * _power(fan.weight_bits) // 8)


def _power(bits: int) -> int:
    """Return 1, 2, 4 or 8 bits, in which widths are stored."""
    return 1 << (bits - 1).bit_length()


def _event_bits(fan: Fan) -> int:
    return max(1, max(fan.counts[1], -fan.counts[0]).bit_length())


def _event_bytes(fan: Fan) -> int:
    channels, height, width = fan.image
    return -(-channels * height * width * _power(_event_bits(fan)) // 8)


def _flat(view: View, fan: Fan, device: Device) -> Iterator[Misfit]:
    have = device.constants["dense_inputs_max"]
    if fan.image[0] > have:
        what = f"reads {fan.image[0]} inputs, the device takes {have}"
        yield Misfit(view.name, "inputs", fan.image[0], have, what, f"at most {have} inputs")


def _pooling(view: View, fan: Fan, network: Sequence[View]) -> Iterator[Misfit]:
    """Pooling belongs to the convolution before it, which then feeds nothing else."""
    before = next((other for other in network if other.name == fan.source), None)
    readers = sum(f.source == fan.source for other in network for f in other.fans)
    if before is None or before.fans[0].kind not in ("conv", "depthwise") or readers > 1:
        what = "pools what no convolution of its own makes"
        yield Misfit(view.name, "pooling", None, None, what, "pooling right behind a convolution")
    if fan.kind == "max" and (fan.window.kernel != (2, 2) or not set(fan.window.strides) <= {1, 2}):
        size, steps = fan.window.kernel, fan.window.strides
        what = f"takes maxima of {size[0]}x{size[1]} by {max(steps)}, the device of 2x2 by 1 or 2"
        yield Misfit(view.name, "pooling", max(size), 2, what, "maxima of 2x2")


def _first(view: View, fan: Fan, first: FirstLayer) -> Iterator[Misfit]:
    """Check what the unit for the first layer takes."""
    channels, height, width = fan.image
    side, strides = kernel_side(fan, even_padding=False), fan.window.strides
    most = first.filters_max.get(f"{channels}x{side}")
    sides = ", ".join(f"{k}x{k}" for k in first.kernels)
    if most is None:
        what = f"a kernel of {side}x{side} is needed, the first layer has {sides}"
        yield Misfit(view.name, "kernel", side, max(first.kernels), what, f"kernels of {sides}")
    elif view.image[0] > most:
        what = f"{view.image[0]} filters of {side}x{side}, at most {most} in the first layer"
        yield Misfit(view.name, "filters", view.image[0], most, what, f"at most {most} filters")
    if not first.side_min <= min(height, width) or width > first.width_max:
        what = f"an image of {height}x{width}, the device takes {first.side_min} to {first.width_max} wide"
        yield Misfit(view.name, "input_side", width, first.width_max, what, "an image of that size")
    if not set(strides) <= set(first.strides):
        what = f"moves by {max(strides)}, the first layer by {', '.join(map(str, first.strides))}"
        yield Misfit(view.name, "stride", max(strides), max(first.strides), what, "one of these strides")
    widths = (
        ("weight_bits", fan.weight_bits, first.weight_bits_max),
        ("event_bits", _event_bits(fan), first.event_bits_max),
    )
    for name, need, have in widths:
        if need > have:
            what = f"{name.replace('_', ' ')}: {need} are needed, the first layer has {have}"
            yield Misfit(view.name, name, need, have, what, f"{have} bits")
