"""Golden inputs: what an artifact carries to prove itself, and what candidates are checked and timed on."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..backend import Array, Port, Signature
from ..data import Samples

MAX_SAMPLES: Final = 4
MAX_BYTES: Final = 4 << 20


def golden_inputs(samples: Samples | None, signature: Signature, seed: int) -> list[dict[str, Array]]:
    """Return up to four input sets: calibration samples where there are any, else seeded random arrays.

    Random floats are standard normal; random integers and booleans are 0 or 1, the only values that are
    valid as index, token and flag alike. Symbolic dimensions become 1. One set suffices for inputs of more
    than 1 MB; a golden file stays below 4 MB where a single sample allows it.
    """
    if samples is not None:
        limit = max(1, min(MAX_SAMPLES, MAX_BYTES // max(1, _bytes(next(iter(samples.batches(1)))))))
        return list(samples.head(limit).batches(1))
    rng = np.random.default_rng(seed)
    first = {port.name: _random(port, rng) for port in signature.inputs}
    limit = max(1, min(MAX_SAMPLES, MAX_BYTES // max(1, _bytes(first))))
    more = [{port.name: _random(port, rng) for port in signature.inputs} for _ in range(limit - 1)]
    return [first, *more]


def _random(port: Port, rng: np.random.Generator) -> Array:
    import onnx_ir as ir

    shape = tuple(size if isinstance(size, int) else 1 for size in port.shape)
    dtype = ir.DataType[port.dtype].numpy()
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _bytes(arrays: dict[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())
