"""From an `ir.Model` to a `Program`: layers are read, fused, and each handed to the kernel that takes it.

`supported` says beforehand which nodes nothing takes, and why; `lower` refuses such a model. Layouts are
chosen for the whole model: images are NHWC from the first layer to the last, the model's own transposes and
reshapes only change how its inputs are read, and images carry the padding that their readers need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from ....compiler.errors import UnsupportedOp
from . import dense
from . import layers as L
from . import layers_sequence as S
from .fuse import fuse
from .isa import Isa
from .kernels.concat import ConcatSpec
from .kernels.int8_tiles import NO_BORDER
from .kernels.move import How, MoveSpec, Side
from .lower_binary import BINARY_RULES
from .lower_f32 import FLOAT_RULES
from .lower_int8 import INT8_RULES, borders, pitches
from .lower_lowbit import LOWBIT_RULES
from .lower_recurrent import RECURRENT_RULES
from .lower_sequence import SEQUENCE_RULES
from .place import Builder, Unfit
from .program import Program
from .read import Reading, read
from .reader import bind_batch
from .separable import join_separable

LayerRule = Callable[[Builder, L.Layer], None]


def supported(model: ir.Model, isa: Isa, batch: int = 1) -> list[tuple[str, str]]:
    """Return (node name, reason) for every node that keeps `model` from being lowered; empty: all is well."""
    try:
        reading = read(bind_batch(model, batch))
        refused = [(node.name or node.op_type, reason) for node, reason in reading.refused]
        return refused or _write(reading, isa, dry=True)[1]
    except UnsupportedOp as error:
        return [("", error.message)]


def lower(model: ir.Model, isa: Isa, batch: int = 1) -> Program:
    """Return the program that computes `model`, which is not edited; a symbolic batch becomes `batch`.

    Raises:
        UnsupportedOp: `native-unsupported`, with the first node that nothing takes and why.
    """
    return _lowered(model, isa, batch, dry=False)


def sketch(model: ir.Model, isa: Isa, batch: int = 1) -> Program:
    """Return the program without its constants: steps and buffers, enough for a memory plan.

    Raises:
        UnsupportedOp: as `lower`.
    """
    return _lowered(model, isa, batch, dry=True)


def _lowered(model: ir.Model, isa: Isa, batch: int, dry: bool) -> Program:
    reading = read(bind_batch(model, batch))
    if reading.refused:
        node, reason = reading.refused[0]
        _refuse(f"node {node.name!r} ({node.op_type}): {reason}", len(reading.refused))
    program, refused = _write(reading, isa, dry)
    if refused:
        _refuse(f"node {refused[0][0]!r}: {refused[0][1]}", len(refused))
    program = join_separable(program, isa)
    program.check()
    return program


def _refuse(what: str, count: int) -> None:
    more = f"; {count - 1} more nodes" if count > 1 else ""
    raise UnsupportedOp("native-unsupported", f"native: {what}{more}", "use the engine ort")


def _write(reading: Reading, isa: Isa, dry: bool) -> tuple[Program, list[tuple[str, str]]]:
    layers = fuse(reading.layers, reading.outputs)
    builder = Builder(isa, dry, [tensor.name for tensor in reading.outputs])
    builder.borders, builder.pitches = borders(layers), pitches(layers, reading.outputs)
    for tensor in reading.inputs:
        builder.open_input(tensor)
    refused: list[tuple[str, str]] = []
    for layer in layers:
        try:
            _rule(layer)(builder, layer)
        except Unfit as reason:
            refused.append((layer.covers[0] if layer.covers else layer.output.name, str(reason)))
            _stand_in(builder, layer)
    refused += _close(builder, reading.outputs)
    return builder.program(), refused


def _close(builder: Builder, outputs: Sequence[L.Tensor]) -> list[tuple[str, str]]:
    try:
        for tensor in outputs:
            dense.close_output(builder, tensor)
    except Unfit as reason:
        return [(outputs[0].name, str(reason))]
    return []


def _stand_in(builder: Builder, layer: L.Layer) -> None:
    """Give a refused layer an output, so that only its own reason is reported."""
    made = layer.output
    if len(made.shape) not in (2, 4):
        dtype = "float32" if made.quant is None else "uint8"
        builder.where[made.name] = dense.dense_for(builder, made.name, made.shape, dtype)
    elif made.quant is not None:
        builder.bytes_for(made)
    else:
        builder.floats_for(made)


def _rule(layer: L.Layer) -> LayerRule:
    rule = RULES.get((type(layer), layer.inputs[0].quant is not None))
    if rule is None:
        kind = "quantized" if layer.inputs[0].quant else "float"
        raise Unfit(f"no {kind} kernel for {type(layer).__name__}")
    return rule


def _reshape(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Reshape), "the table says so"
    dense.reshape(builder, layer)


def _transpose(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, L.Transpose), "the table says so"
    dense.transpose(builder, layer)


def _convert(builder: Builder, layer: L.Layer) -> None:
    """Quantize, dequantize or requantize, from whatever layout the tensor has."""
    source, target = layer.inputs[0], layer.output
    if len(source.shape) not in (2, 4):
        SEQUENCE_RULES[S.Chain](builder, S.Chain((source,), target, layer.covers, ()))
        return
    where = builder.held(source) if source.quant is not None else builder.where[source.name]
    how = "quantize" if source.quant is None else "requantize" if target.quant is not None else "dequantize"
    n, c, h, w = source.image
    made = builder.bytes_for(target) if target.quant is not None else builder.floats_for(target)
    fill = target.quant.zero if target.quant is not None else 0
    builder.move(
        where.side(), where.buffer, made, (n, h, w, c), how, (source.quant, target.quant), fill, layer.covers
    )


def _concat(builder: Builder, layer: L.Layer) -> None:
    target = layer.output
    held = [builder.image_of(x) for x in layer.inputs]
    made = builder.bytes_for(target) if target.quant is not None else builder.floats_for(target)
    image, side, parts, first = made.image, made.side(), list[MoveSpec](), 0
    for x, one in zip(layer.inputs, held, strict=True):
        sizes = (image.batch, image.height, image.width, x.channels)
        into = replace(side, offset=side.offset + first)
        how, pairs = _requantization(x.quant, target.quant)
        last = first + x.channels == image.channels
        lanes = image.pitch - first if last else 0
        border = NO_BORDER if parts else image.border
        fill = target.quant.zero if target.quant is not None else 0
        parts.append(MoveSpec(sizes, one.side(), into, how, *pairs, border, lanes, fill))
        first += x.channels
    buffers = [one.buffer for one in held]
    builder.step("concat", ConcatSpec(tuple(parts)), buffers, (), made.buffer, layer.covers)


def _requantization(
    source: L.Quant | None, target: L.Quant | None
) -> tuple[How, tuple[tuple[float, int], tuple[float, int]]]:
    """Return how a part changes on its way, and its (scale, zero) before and after."""
    if source is None or target is None or (source.scale, source.zero) == (target.scale, target.zero):
        return "copy", ((1.0, 0), (1.0, 0))
    return "requantize", ((source.scale, source.zero), (target.scale, target.zero))


def _shuffle(builder: Builder, layer: L.Layer) -> None:
    """Interleave groups of channels: [groups, channels of one] becomes [channels of one, groups]."""
    assert isinstance(layer, L.Shuffle), "the table says so"
    source, target = layer.inputs[0], layer.output
    if target.shape != source.shape:
        raise Unfit(f"a transposed tensor of shape {target.shape} is read by itself")
    held = builder.image_of(source)
    made = builder.bytes_for(target) if target.quant is not None else builder.floats_for(target)
    if any(held.image.border) or any(made.image.border):
        raise Unfit("channels are interleaved between padded images")
    i, inner = held.image, source.channels // layer.groups
    pixels, size = i.batch * i.height * i.width, i.bytes
    spec = MoveSpec(
        (1, pixels, layer.groups, inner),
        Side(held.dtype, size, (0, i.pitch, inner, 1)),
        Side(held.dtype, size, (0, i.pitch, 1, layer.groups)),
    )
    builder.step("move", spec, (held.buffer,), (), made.buffer, layer.covers)


RULES: Mapping[tuple[type[L.Layer], bool], LayerRule] = {
    **BINARY_RULES,
    (L.Concat, False): _concat,
    (L.Concat, True): _concat,
    (L.Convert, False): _convert,
    (L.Convert, True): _convert,
    (L.Reshape, False): _reshape,
    (L.Reshape, True): _reshape,
    (L.Shuffle, False): _shuffle,
    (L.Shuffle, True): _shuffle,
    (L.Transpose, False): _transpose,
    (L.Transpose, True): _transpose,
    **{(kind, True): rule for kind, rule in INT8_RULES.items()},
    **{(kind, False): rule for kind, rule in FLOAT_RULES.items()},
    **{(kind, False): rule for kind, rule in {**LOWBIT_RULES, **RECURRENT_RULES}.items()},
    **{(kind, quantized): rule for kind, rule in SEQUENCE_RULES.items() for quantized in (False, True)},
}
