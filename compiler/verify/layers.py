"""Every layer against the float original: values matched by name, both graphs run as they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..backend import Array, Arrays
from ..differences import Sqnr
from .records import LayerRecord, LayerReport

if TYPE_CHECKING:
    import onnx_ir as ir

CHUNK_BYTES = 128 << 20
CHUNK_VALUES = 256
LIMIT_DB = 20.0
# Bytes assumed for a value of unknown shape.
_UNKNOWN_BYTES = 4 << 20

Floats = npt.NDArray[np.floating]
Progress = Callable[[str, int, int], None]


class Batches(Protocol):
    """Inputs that can be read again and again, such as `Samples`."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(self, size: int = 1) -> Iterator[dict[str, Array]]:
        """Yield the inputs of `size` samples a time."""
        ...


@dataclass
class Noise(Sqnr):
    """Running sums and extremes over samples of one value."""

    max_difference: float = 0.0
    max_reference: float = 0.0

    def add(self, want: Array, got: Array) -> float:
        """Take one sample; both have the same shape."""
        difference = super().add(want, got)
        self.max_difference = max(self.max_difference, difference)
        finite = np.abs(want[np.isfinite(want)].astype(np.float64))
        self.max_reference = max(self.max_reference, float(finite.max(initial=0.0)))
        return difference


def compare_layers(
    original: ir.Model,
    compiled: ir.Model,
    samples: Batches,
    *,
    names: Mapping[str, str] | None = None,
    divisors: Mapping[str, Floats] | None = None,
    limit_db: float = LIMIT_DB,
    progress: Progress | None = None,
) -> LayerReport:
    """Run both graphs without optimisation and compare the float values that have the same name.

    Args:
        original: the float model after import.
        compiled: the optimised model or payload.
        samples: inputs that fit both.
        names: name in `compiled` -> name in `original`, where they differ.
        divisors: name in `original` -> what `compiled` divides that value by; must broadcast.
        limit_db: a layer below this is hurt.
        progress: called as `progress("layers", runs done, runs in all)`.
    """
    pairs = match_values(original, compiled, names or {})
    noises: dict[str, Noise] = {}
    chunks = list(_chunks(original, list(pairs)))
    for done, chunk in enumerate(chunks):
        part = {name: pairs[name] for name in chunk}
        step = (done, len(chunks))
        noises |= _measure(original, compiled, part, divisors or {}, samples, progress, step)
    layers = tuple(_records(original, noises))
    hurt = next((layer.value for layer in layers if layer.sqnr_db < limit_db), None)
    unmatched = sum(len(node.outputs) for node in original.graph) - len(noises)
    return LayerReport(layers, hurt, limit_db, unmatched, len(samples))


def match_values(original: ir.Model, compiled: ir.Model, names: Mapping[str, str]) -> dict[str, str]:
    """Return name in `original` -> name in `compiled` of computed float values in both main graphs."""
    made = {
        names.get(value.name, value.name): value.name
        for node in compiled.graph
        for value in node.outputs
        if value.name
    }
    return {
        value.name: made[value.name]
        for node in original.graph
        for value in node.outputs
        if value.name and value.name in made and _is_float(value)
    }


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name in ("FLOAT", "FLOAT16", "DOUBLE")


def _chunks(original: ir.Model, names: Sequence[str]) -> Iterator[list[str]]:
    """Split values so that those fetched at once stay within a fixed amount of memory."""
    sizes = {value.name: _bytes(value) for node in original.graph for value in node.outputs if value.name}
    chunk: list[str] = []
    total = 0
    for name in names:
        if chunk and (total + sizes[name] > CHUNK_BYTES or len(chunk) == CHUNK_VALUES):
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += sizes[name]
    if chunk:
        yield chunk


def _bytes(value: ir.Value) -> int:
    if value.shape is None or not value.shape.is_static():
        return _UNKNOWN_BYTES
    # Fetched twice, from either graph.
    return 2 * 4 * math.prod(int(size) for size in value.shape.numpy())


def _measure(
    original: ir.Model,
    compiled: ir.Model,
    pairs: Mapping[str, str],
    divisors: Mapping[str, Floats],
    samples: Batches,
    progress: Progress | None,
    step: tuple[int, int],
) -> dict[str, Noise]:
    from ..ort import make_session, run_session

    wanted, offered = list(pairs), list(pairs.values())
    first = make_session(original, optimize="none", extra_outputs=wanted)
    second = make_session(compiled, optimize="none", extra_outputs=offered)
    noises: dict[str, Noise] = {}
    for index, inputs in enumerate(samples.batches()):
        want, got = run_session(first, inputs, wanted), run_session(second, inputs, offered)
        _add(noises, pairs, divisors, want, got)
        if progress is not None:
            progress("layers", step[0] * len(samples) + index + 1, step[1] * len(samples))
    return noises


def _add(
    noises: dict[str, Noise],
    pairs: Mapping[str, str],
    divisors: Mapping[str, Floats],
    want: Arrays,
    got: Arrays,
) -> None:
    for name, other in pairs.items():
        # A pass may keep a name for a value of another layout or type; those are not comparable.
        if want[name].shape == got[other].shape and got[other].dtype.kind == "f":
            value = got[other].astype(np.float64) * divisors[name] if name in divisors else got[other]
            noises.setdefault(name, Noise()).add(want[name], value)


def _records(original: ir.Model, noises: Mapping[str, Noise]) -> Iterator[LayerRecord]:
    inherited: dict[ir.Value, float] = {}
    for index, node in enumerate(original.graph):
        before = max((inherited.get(value, 0.0) for value in node.inputs if value is not None), default=0.0)
        for value in node.outputs:
            noise = noises.get(value.name or "")
            inherited[value] = before if noise is None else noise.ratio
            if noise is not None and value.name is not None:
                yield LayerRecord(
                    index=index,
                    value=value.name,
                    node=node.name or "",
                    op_type=node.op_type,
                    sqnr_db=noise.sqnr_db,
                    added_noise=_added(noise.ratio, before),
                    max_difference=noise.max_difference,
                    max_reference=noise.max_reference,
                )


def _added(ratio: float, before: float) -> float:
    return 0.0 if ratio <= before else ratio - before
