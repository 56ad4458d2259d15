"""What a neuromorphic device offers to layers of neurons: cores with limits, rules for layers, sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pydantic


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Cores(_Part):
    """Cores that are alike.

    Attributes:
        count: how many there are.
        limits: name of a limit (its unit, as in `memory_bytes`) -> what one core has of it.
        kinds: what they can hold, where a device has cores for some layers only; empty for all.
    """

    count: int = pydantic.Field(gt=0)
    limits: dict[str, int]
    kinds: tuple[str, ...] = ()


class LayerRules(_Part):
    """What one layer may be. None and empty mean that nothing limits it.

    Attributes:
        kernels: sides that a kernel may have.
        strides: steps that it may take.
        padding_max, input_side_max, output_side_max, channels_max, fan_out_max: as they say.
        weight_bits_max: of signed weights.
        event_bits_max: of the payload of one event; None: any, 0: a spike has none and counts once.
        signed_events: whether an event may stand for a negative count.
        state_bits: of a neuron's accumulator.
        max_pool, add, grouped: whether it takes maxima, sums of several populations, convolutions in groups;
            `dense` stores the zeros between groups.
        sum_pool: averages and sums over windows; `conv` as a convolution, `global` over whole images only.
        even_padding: whether both sides of an image are padded alike, so that kernels grow to make up for it.
        dense_as_kernel: whether a dense layer over an image is a kernel as large as the image.
    """

    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding_max: int | None = pydantic.Field(default=None, ge=0)
    input_side_max: int | None = pydantic.Field(default=None, gt=0)
    output_side_max: int | None = pydantic.Field(default=None, gt=0)
    channels_max: int | None = pydantic.Field(default=None, gt=0)
    fan_out_max: int | None = pydantic.Field(default=None, gt=0)
    weight_bits_max: int | None = pydantic.Field(default=None, gt=0)
    event_bits_max: int | None = pydantic.Field(default=None, ge=0)
    signed_events: bool = False
    state_bits: int | None = pydantic.Field(default=None, gt=0)
    max_pool: bool = False
    add: bool = True
    grouped: Literal["yes", "dense", "no"] = "yes"
    sum_pool: Literal["conv", "global"] = "conv"
    dense_as_kernel: bool = False
    even_padding: bool = False


class FirstLayer(_Part):
    """A unit of its own for the layer that reads an image; what does not fit it goes to the cores.

    Attributes:
        channels: of the image.
        side_min, width_max: of the image.
        kernels, strides: as for layers.
        filters_max: `<channels>x<kernel>` -> output channels.
        weight_bits_max, event_bits_max: of weights and of pixels.
    """

    channels: tuple[int, ...]
    side_min: int
    width_max: int
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    filters_max: dict[str, int]
    weight_bits_max: int
    event_bits_max: int


class Device(_Part):
    """How layers of neurons lie on a device.

    Attributes:
        placement: `layers`: one layer per core; `blocks`: layers are cut into blocks, one per core;
            `filters`: layers are cut by output channels and by image area.
        storage: how a core stores synapses: `padded-kernels`, `synapse-lists`, `bytes`, `rows`.
        cores: groups of equal cores.
        layer: rules for layers.
        first_layer: the unit for the first layer, if there is one.
        constants: numbers of the storage model.
        sources: fact -> where it is from.
        assumed: constant -> why it has this value, where nobody has published one.
        differs: what of the counts the device computes otherwise than the model, in sentences.
    """

    placement: Literal["layers", "blocks", "filters"]
    storage: Literal["padded-kernels", "synapse-lists", "bytes", "rows"]
    cores: tuple[Cores, ...] = pydantic.Field(min_length=1)
    layer: LayerRules = LayerRules()
    first_layer: FirstLayer | None = None
    constants: dict[str, int] = {}
    sources: dict[str, str] = pydantic.Field(min_length=1)
    assumed: dict[str, str] = {}
    differs: tuple[str, ...] = ()

    @property
    def core_count(self) -> int:
        """Return how many cores there are in all."""
        return sum(group.count for group in self.cores)


def part_of(place: Sequence[int | str]) -> type[pydantic.BaseModel]:
    """Return the record at a place below `device`, such as `("cores", 0)`; the device where there is none."""
    parts: dict[str, type[pydantic.BaseModel]] = {
        "cores": Cores, "layer": LayerRules, "first_layer": FirstLayer,
    }  # fmt: skip
    return parts.get(str(place[0]), Device)
