"""Golden inputs: what an artifact carries to prove itself, and what candidates are checked and timed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ..backend import Array, Port, Signature
from ..data import Samples
from ..errors import DataError, ParedError

MAX_SAMPLES: Final = 4
MAX_BYTES: Final = 4 << 20
# Work per sample times samples: deriving a bound runs the reference a dozen times.
MAX_MACS: Final = 60_000_000

# Sizes tried for symbolic dimensions other than the first, and ends of the range of random integers: a
# model may need a minimal length, and integers may be tokens (many valid values) or flags (0 and 1).
_SIZES: Final = (1, 16, 64, 512)
_HIGH: Final = (10, 2)


def golden_inputs(
    samples: Samples | None,
    signature: Signature,
    seed: int,
    macs: int,
    run: Callable[[dict[str, Array]], object],
) -> list[dict[str, Array]]:
    """Return up to four input sets: calibration samples where there are any, else seeded random arrays.

    Random floats are standard normal. Big inputs (4 MB together) and heavy models make it fewer, never
    none. In random arrays a symbolic dimension that comes first somewhere is a batch and becomes 1; others
    become the smallest of a few sizes that the model runs with.

    Args:
        samples: calibration data.
        signature: the model's inputs.
        seed: of the random arrays.
        macs: multiply-accumulates of one inference.
        run: one inference of the float model; raises `ParedError` when the inputs do not suit it.

    Raises:
        DataError: `dynamic-shape` when no random input suits the model; names what to bind.
    """
    if samples is not None:
        first = next(iter(samples.batches(1)))
        return list(samples.head(_count(first, macs)).batches(1))
    rng = np.random.default_rng(seed)
    draw = _suitable(signature, rng, run)
    first = draw()
    return [first, *(draw() for _ in range(_count(first, macs) - 1))]


def _count(first: dict[str, Array], macs: int) -> int:
    size = sum(array.nbytes for array in first.values())
    return max(1, min(MAX_SAMPLES, MAX_BYTES // max(1, size), MAX_MACS // max(1, macs)))


def _suitable(
    signature: Signature, rng: np.random.Generator, run: Callable[[dict[str, Array]], object]
) -> Callable[[], dict[str, Array]]:
    """Return a source of random inputs that the model runs with."""
    if all(_leaves_no_choice(port) for port in signature.inputs):
        return lambda: {port.name: _random(port.dtype, _sizes(port), rng, 2) for port in signature.inputs}
    refusal = ""
    batches = {port.shape[0] for port in signature.inputs if port.shape}
    for size in _SIZES:
        for high in _HIGH:

            def draw(size: int = size, high: int = high) -> dict[str, Array]:
                shapes = {port: _bound(port, batches, size) for port in signature.inputs}
                return {port.name: _random(port.dtype, shape, rng, high) for port, shape in shapes.items()}

            try:
                run(draw())
            except ParedError as err:
                refusal = err.message
            else:
                return draw
    shapes = ", ".join(f"{port.name}: {list(port.shape)}" for port in signature.inputs)
    raise DataError(
        "dynamic-shape",
        f"no random input suits the model (inputs {shapes}): {refusal}",
        "bind the symbolic dimensions with --shape NAME:1x3x224x224, or give --calib-data",
    )


def _bound(port: Port, batches: set[int | str], size: int) -> tuple[int, ...]:
    return tuple(s if isinstance(s, int) else (1 if s in batches else size) for s in port.shape)


def _leaves_no_choice(port: Port) -> bool:
    """Say whether random arrays of an input can only be one kind: floats of a fixed shape."""
    import onnx_ir as ir

    return len(_sizes(port)) == len(port.shape) and ir.DataType[port.dtype].is_floating_point()


def _sizes(port: Port) -> tuple[int, ...]:
    return tuple(size for size in port.shape if isinstance(size, int))


def _random(dtype_name: str, shape: tuple[int, ...], rng: np.random.Generator, high: int) -> Array:
    import onnx_ir as ir

    dtype = ir.DataType[dtype_name].numpy()
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return rng.integers(0, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
