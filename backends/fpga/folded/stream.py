"""Tensors as the values that stream in and out of the engine, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..graph import Ints
from .program import Folding, Program
from .tasks import Tensor


def enter(program: Program, codes: Mapping[str, Ints]) -> Ints:
    """Return what streams in for each sample, [N, clocks, units], from the integers of the input wires."""
    parts = []
    for entry in program.tasks.entries:
        q = codes[entry.wire.name]
        stored = (q.reshape(len(q), -1) - entry.wire.zero)[:, entry.order]
        place = _places(entry.tensor, program.folding)
        padded = np.concatenate([stored, np.zeros((len(stored), 1), np.int64)], axis=1)
        parts.append(padded[:, place])
    return np.concatenate(parts, axis=1)


def leave(program: Program, streamed: Ints) -> dict[str, Ints]:
    """Return the integers of the output wires from what streamed out, [N, clocks, units]."""
    found: dict[str, Ints] = {}
    begin = 0
    for task in (task for task in program.tasks.tasks if task.leaves):
        place = _places(task.tensor, program.folding)
        part = streamed[:, begin : begin + len(place)].reshape(len(streamed), -1)
        begin += len(place)
        size = task.tensor.channels * task.tensor.pixels
        flat = np.zeros((len(streamed), size + 1), np.int64)
        flat[:, place.reshape(-1)] = part
        for one in (one for one in program.tasks.exits if one.task == task.tensor.name):
            found[one.wire.name] = (flat[:, one.order] + one.zero).reshape(-1, *one.wire.shape)
    return found


def leaving_clocks(program: Program) -> int:
    """Return how many times values come out for one sample."""
    return sum(len(_places(task.tensor, program.folding)) for task in program.tasks.tasks if task.leaves)


def _places(tensor: Tensor, folding: Folding) -> Ints:
    """Return [clocks, units]: which element streams where, channels first; `size` for none."""
    lanes, units = folding.lanes, folding.units
    groups, chunks = folding.groups(tensor.channels), folding.chunks(tensor.channels)
    lane = np.arange(chunks * units).reshape(chunks, units)
    channel = np.arange(groups)[:, None, None] * lanes + lane
    pixel = np.arange(tensor.pixels)[:, None, None, None]
    place = channel * tensor.pixels + pixel
    size = tensor.channels * tensor.pixels
    missing = (channel >= tensor.channels) | (lane >= lanes)
    return np.where(missing, size, place).reshape(-1, units).astype(np.int64)
