"""Checks a layer against what a device takes in one layer at all, whatever room its cores have."""

from __future__ import annotations

from collections.abc import Iterator

from ....compiler.device import LayerRules
from .records import Misfit
from .views import Fan, View


def check(view: View, rules: LayerRules, fan_out: int) -> list[Misfit]:
    """Return what a layer breaks of a device's rules; `fan_out` is how many layers it feeds."""
    found = [*_numbers(view, rules, fan_out), *_kinds(view, rules)]
    for fan in view.fans:
        found += [*_window(view, fan, rules), *_events(view, fan, rules)]
    return found


def _numbers(view: View, rules: LayerRules, fan_out: int) -> Iterator[Misfit]:
    channels, height, width = view.image
    yield from _most(view, "channels", channels, rules.channels_max, "output channels")
    yield from _most(view, "output_side", max(height, width), rules.output_side_max, "pixels a side")
    yield from _most(view, "fan_out", fan_out, rules.fan_out_max, "layers fed by this one")
    bits = rules.state_bits
    if bits is not None and view.state_bits > bits:
        yield Misfit(
            view.name, "state_bits", view.state_bits, bits,
            f"accumulators may take {view.state_bits} bits, a neuron's state has {bits}",
            f"weights and counts of {view.state_bits - bits} bits less together, or fewer inputs per neuron",
        )  # fmt: skip


def _kinds(view: View, rules: LayerRules) -> Iterator[Misfit]:
    kinds = {fan.kind for fan in view.fans}
    if "max" in kinds and not rules.max_pool:
        yield _not(view, "max_pool", "takes maxima, the device adds up", "average pooling, or strides")
    if len(view.fans) > 1 and not rules.add:
        yield _not(view, "add", f"adds up {len(view.fans)} populations", "a network without shortcuts")
    if "depthwise" in kinds and rules.grouped == "no":
        yield _not(
            view, "grouped", "is a depthwise convolution with thresholds of its own",
            "depthwise and pointwise convolution as one layer without thresholds between",
        )  # fmt: skip
    if "sum" in kinds and rules.sum_pool == "global" and view.image[1:] != (1, 1):
        yield _not(
            view, "sum_pool", "averages windows, not the whole image", "max pooling, strides, global pooling"
        )


def _window(view: View, fan: Fan, rules: LayerRules) -> Iterator[Misfit]:
    side = kernel_side(fan, rules.even_padding)
    # Where a kernel has one place only, its steps do not matter.
    strides = {step for step, size in zip(fan.window.strides, view.image[1:], strict=True) if size > 1} or {1}
    moves = fan.kind in ("conv", "depthwise") or (fan.kind == "sum" and rules.sum_pool == "conv")
    moves = moves or (fan.kind == "dense" and rules.dense_as_kernel)
    if rules.kernels and moves and side not in rules.kernels:
        most = max(rules.kernels)
        yield Misfit(
            view.name, "kernel", side, most,
            f"a kernel of {side}x{side} holds its {_text(fan)}, the device has {_sides(rules.kernels)}",
            f"kernels of {_sides(rules.kernels)}",
        )  # fmt: skip
    if rules.strides and moves and not strides <= set(rules.strides):
        worst = max(strides - set(rules.strides))
        yield Misfit(
            view.name, "stride", worst, max(rules.strides),
            f"moves by {worst}, the device by {', '.join(map(str, rules.strides))}", "one of these strides",
        )  # fmt: skip
    if moves:
        pads = padding(fan, rules.even_padding)
        yield from _most(view, "padding", pads, rules.padding_max, "pixels of padding")
        if max(fan.window.dilations) > 1 and rules.kernels:
            yield _not(view, "dilation", "is dilated", "a kernel without gaps")
    yield from _most(view, "input_side", max(fan.image[1:]), rules.input_side_max, "pixels a side come in")


def _events(view: View, fan: Fan, rules: LayerRules) -> Iterator[Misfit]:
    bits = rules.weight_bits_max
    if bits is not None and fan.weight_bits > bits:
        cause, would = "what one count adds (populations of different scales)", "one scale for what is added"
        if fan.weights:
            cause, would = "weights", f"weights of {bits} bits (--precision w{bits}a{bits})"
        what = f"{cause} take {fan.weight_bits} bits, the device has {bits}"
        yield Misfit(view.name, "weight_bits", fan.weight_bits, bits, what, would)
    low, high = fan.counts
    if low < 0 and not rules.signed_events and not fan.is_input:
        yield _not(
            view, "signed_events", f"is fed counts from {low} on, events have no sign", "a Relu before it"
        )
    most = rules.event_bits_max
    need = max(high, -low).bit_length() + (low < 0)
    if most and need > most:
        yield Misfit(
            view.name, "event_bits", need, most,
            f"events from {fan.source!r} carry {need} bits, the device has {most}",
            f"activations of {most} bits",
        )  # fmt: skip


def kernel_side(fan: Fan, even_padding: bool) -> int:
    """Return the side of the square kernel that does what this one does."""
    if fan.kind == "dense":
        return max(fan.dense_image)
    return max(_grown(fan, axis, even_padding) for axis in (0, 1))


def padding(fan: Fan, even_padding: bool) -> int:
    """Return the padding of that kernel."""
    if fan.kind == "dense":
        return 0
    side, pads = kernel_side(fan, even_padding), fan.window.pads
    grown = [(axis, _grown(fan, axis, even_padding)) for axis in (0, 1)]
    return max(max(pads[axis], pads[axis + 2]) + (side - length + 1) // 2 for axis, length in grown)


def _grown(fan: Fan, axis: int, even_padding: bool) -> int:
    """Return the length of the kernel; with even padding, zeros in it take up the difference."""
    before, after = fan.window.pads[axis], fan.window.pads[axis + 2]
    reach = fan.window.dilations[axis] * (fan.window.kernel[axis] - 1) + 1
    return reach + (abs(before - after) if even_padding else 0)


def _text(fan: Fan) -> str:
    height, width = fan.dense_image if fan.kind == "dense" else fan.window.kernel
    return f"{height}x{width}"


def _sides(sides: tuple[int, ...]) -> str:
    if sides == tuple(range(1, len(sides) + 1)):
        return f"1x1 to {len(sides)}x{len(sides)}"
    return ", ".join(f"{side}x{side}" for side in sides)


def _most(view: View, limit: str, need: int, have: int | None, what: str) -> Iterator[Misfit]:
    if have is not None and need > have:
        yield Misfit(view.name, limit, need, have, f"{need} {what}, at most {have}", f"at most {have} {what}")


def _not(view: View, limit: str, what: str, would_fit: str) -> Misfit:
    return Misfit(view.name, limit, None, None, what, would_fit)
