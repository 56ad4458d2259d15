"""Programs for several samples at once are checked before they are shipped: golden inputs, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..backend import Array, Arrays, Executable, RunsBatches

# Of one check where the target is emulated: a CPU does about as many multiply-accumulates in half a second.
MAX_MACS: Final = 500_000_000
# Of one check's inputs, anywhere.
MAX_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Checks:
    """Batch sizes above 1: those that are run, and those that would take too long or too much memory."""

    run: tuple[int, ...]
    left: tuple[int, ...]


def checks_of(executable: Executable, sample: Arrays, macs: int, *, emulated: bool) -> Checks:
    """Say which batch sizes of an executable are checked; none where the first size is not open.

    Args:
        executable: loaded.
        sample: a golden input.
        macs: multiply-accumulates of one sample.
        emulated: the target's device is not here.
    """
    ports = executable.signature.inputs
    opened = all(port.shape and isinstance(port.shape[0], str) for port in ports)
    if not opened or not isinstance(executable, RunsBatches) or any(len(a) != 1 for a in sample.values()):
        return Checks((), ())
    sizes = [size for size in executable.sizes if size > 1]
    each = sum(array.nbytes for array in sample.values())
    most = min(MAX_MACS // max(1, macs) if emulated else MAX_BYTES, MAX_BYTES // max(1, each))
    return Checks(tuple(s for s in sizes if s <= most), tuple(s for s in sizes if s > most))


def run_batch(
    executable: Executable, samples: Sequence[Arrays], size: int
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Run `size` samples at once, the given ones in turn; yield which one a row was, and its outputs."""
    rows = [row % len(samples) for row in range(size)]
    inputs = {name: np.concatenate([samples[row][name] for row in rows]) for name in samples[0]}
    outputs: Mapping[str, Array] = executable.run(inputs)
    for row, sample in enumerate(rows):
        yield sample, {name: array[row : row + 1] for name, array in outputs.items()}


def unrun_note(left: Sequence[int]) -> str:
    """Return what the user should know of sizes that were not run."""
    return f"programs for batches of {', '.join(map(str, left))} have not run: too much for a check"
