"""One layer per core: bipartite matching of layers to cores whose memories differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ....compiler.device import Device, LayerRules
from .records import Layout, Misfit, Placed
from .rules import check, kernel_side
from .views import View

# On a core of this kind a convolution takes all the events that come in through one kernel.
_ONE_KERNEL = "a core takes events through one kernel only"


def place(network: Sequence[View], device: Device) -> Layout:
    """Match layers to cores; every layer that breaks a rule or fits no core is a misfit."""
    cores = [group.limits for group in device.cores for _ in range(group.count)]
    misfits = []
    needs: dict[str, dict[str, int]] = {}
    for view in network:
        broken = check(view, device.layer, _fan_out(view, network)) + list(_one_kernel(view))
        need = memory(view, device.layer)
        room = list(_room(view, need, cores, device.layer))
        misfits += broken + room
        if not broken and not room:
            needs[view.name] = need
    taken = match({name: _takers(need, cores) for name, need in needs.items()}, len(cores))
    left = [name for name in needs if name not in taken]
    if left or len(network) > len(cores):
        misfits.append(_too_many(len(network), left, len(cores)))
    placed = [Placed(taken[n], n, "all", needs[n], cores[taken[n]]) for n in needs if n in taken]
    return Layout(tuple(placed), tuple(misfits), len(network), len(cores))


def memory(view: View, rules: LayerRules) -> dict[str, int]:
    """Return the entries that a layer takes in the memories of a core.

    Addresses are put together from bit fields: kernels take `inputs * 2^(ceil log2 k^2 + ceil log2 outputs)`
    entries, neurons `outputs * 2^(ceil log2 height + ceil log2 width)`. Zeros between groups are stored.
    """
    outputs, height, width = view.image
    fan = view.fans[0]
    inputs = fan.image[0]
    if fan.kind == "dense":
        inputs //= fan.dense_image[0] * fan.dense_image[1]
    if fan.counts[0] < 0 and not rules.signed_events:
        inputs *= 2  # one channel for events of each sign, as event cameras have them
    return {
        "kernel_entries": inputs << (log2_up(kernel_side(fan, rules.even_padding) ** 2) + log2_up(outputs)),
        "neuron_entries": outputs << (log2_up(height) + log2_up(width)),
        "bias_entries": outputs if view.biased else 0,
    }


def log2_up(count: int) -> int:
    """Return the bits of an address that tells `count` things apart."""
    return (count - 1).bit_length()


def match(takers: Mapping[str, Sequence[int]], cores: int) -> dict[str, int]:
    """Return layer -> core for as many layers as can have one, each core once (augmenting paths)."""
    holder: list[str | None] = [None] * cores

    def seat(layer: str, tried: set[int]) -> bool:
        for core in takers[layer]:
            if core in tried:
                continue
            tried.add(core)
            other = holder[core]
            if other is None or seat(other, tried):
                holder[core] = layer
                return True
        return False

    for layer in takers:
        seat(layer, set())
    return {layer: core for core, layer in enumerate(holder) if layer is not None}


def _takers(need: Mapping[str, int], cores: Sequence[Mapping[str, int]]) -> list[int]:
    """Return the cores that hold a layer, the smallest first."""
    fitting = [i for i, core in enumerate(cores) if all(need[name] <= core[name] for name in need)]
    return sorted(fitting, key=lambda i: sum(cores[i].values()))


def _fan_out(view: View, network: Sequence[View]) -> int:
    return sum(fan.source == view.name for other in network for fan in other.fans)


def _one_kernel(view: View) -> Iterator[Misfit]:
    shapes = {(fan.kind, fan.image, fan.window, fan.first) for fan in view.fans}
    if len(shapes) > 1:
        what = f"adds {len(view.fans)} populations in different ways; {_ONE_KERNEL}"
        yield Misfit(view.name, "one_kernel", len(shapes), 1, what, "a sum of populations of one shape")


def _room(
    view: View, need: Mapping[str, int], cores: Sequence[Mapping[str, int]], rules: LayerRules
) -> Iterator[Misfit]:
    """Say which memory no core has enough of, or which no core has enough of together."""
    short = False
    for name in need:
        have = max(core[name] for core in cores)
        if need[name] > have:
            short = True
            yield Misfit(
                view.name, name, need[name], have,
                f"needs {need[name]} {name.replace('_', ' ')}, the largest core has {have}",
                _would_fit(view, name, have, rules),
            )  # fmt: skip
    if not short and not _takers(need, cores):
        text = " and ".join(f"{count} {name.replace('_', ' ')}" for name, count in need.items())
        yield Misfit(
            view.name, "core", None, None, f"needs {text}; no core has all of it",
            "fewer output channels, or a smaller image",
        )  # fmt: skip


def _would_fit(view: View, name: str, have: int, rules: LayerRules) -> str:
    """Return how many output channels would fit, of a depthwise layer input channels with them."""
    outputs, height, width = view.image
    fan = view.fans[0]
    for channels in range(outputs - 1, 0, -1):
        inputs = channels if fan.groups == outputs and fan.groups > 1 else fan.image[0]
        thinner = replace(fan, image=(inputs, *fan.image[1:]))
        smaller = replace(view, image=(channels, height, width), fans=(thinner,))
        if memory(smaller, rules)[name] <= have:
            return f"at most {channels} output channels at this image size"
    return f"less than {height}x{width} pixels"


def _too_many(layers: int, left: Sequence[str], cores: int) -> Misfit:
    if layers > cores:
        what = f"{layers} layers, {cores} cores"
        return Misfit("", "cores", layers, cores, what, f"at most {cores} layers that need a core each")
    what = f"no core is left for {', '.join(left)}: the large ones are taken by other layers"
    return Misfit("", "cores", layers, cores, what, "smaller layers, so that smaller cores hold them")
