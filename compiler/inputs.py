"""Checks of the arrays a user feeds: names, dtypes and shapes, each refusal with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from .backend import Array, Port, Signature
from .errors import DataError, nearest

# ONNX spelling -> NumPy dtype that an engine takes for it.
DTYPES: Mapping[str, npt.DTypeLike] = {
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
    "STRING": np.object_,
}


class InputChecker:
    """`check_inputs` for one signature, quick for arrays like those that passed the time before."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        # What passed last: name, dtype and shape. Replaced whole, so that threads may share a checker.
        self._passed: tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...] | None = None

    def __call__(self, inputs: Mapping[str, object]) -> Mapping[str, Array]:
        """Return arrays that fit, or raise `DataError`."""
        passed = self._passed
        if passed is not None and isinstance(inputs, dict) and len(inputs) == len(passed):
            for name, dtype, shape in passed:
                array = inputs.get(name)
                if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                    break
                if not array.flags.c_contiguous:
                    break
            else:
                return cast(dict[str, Array], inputs)
        checked = check_inputs(self._signature, inputs)
        self._passed = tuple((name, array.dtype, array.shape) for name, array in checked.items())
        return checked


def check_inputs(signature: Signature, inputs: Mapping[str, object]) -> dict[str, Array]:
    """Return contiguous arrays of the needed dtype, one per input, or refuse.

    Arrays are cast only where every value of their dtype survives (int8 to float32, say); Python lists and
    numbers, which have no dtype, where their values survive.

    Raises:
        DataError: `input-names`, `input-dtype` or `input-shape`, naming the input, the need and the finding.
    """
    _check_names([port.name for port in signature.inputs], inputs)
    sizes: dict[str, tuple[int, str]] = {}
    arrays = {}
    for port in signature.inputs:
        array = _as_dtype(port, inputs[port.name])
        _check_shape(port, array.shape, sizes)
        arrays[port.name] = array
    return arrays


def check_shapes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check names and shapes of tensors that need not be arrays; raises like `check_inputs`."""
    _check_names([port.name for port in signature.inputs], shapes)
    sizes: dict[str, tuple[int, str]] = {}
    for port in signature.inputs:
        _check_shape(port, shapes[port.name], sizes)


def _check_names(needed: Sequence[str], inputs: Mapping[str, object]) -> None:
    if not isinstance(inputs, Mapping):
        raise DataError(
            "input-names", f"inputs are a {type(inputs).__name__}", "pass a dict of name -> array"
        )
    missing = [name for name in needed if name not in inputs]
    extra = [str(name) for name in inputs if name not in needed]
    if missing or extra:
        found = f"missing {missing}" if missing else ""
        found += (" and " if missing and extra else "") + (f"unknown {extra}" if extra else "")
        hint = nearest(extra[0], list(needed)) if extra and needed else f"the model takes {list(needed)}"
        raise DataError("input-names", f"inputs: {found}", hint)


def _as_dtype(port: Port, given: object) -> Array:
    want = DTYPES.get(port.dtype)
    if want is None:
        raise DataError(
            "input-dtype", f"input {port.name!r} is {port.dtype}, which NumPy arrays cannot carry"
        )
    dtype = np.dtype(want)
    array = np.asarray(given)
    if array.dtype != dtype and not _survives(array, dtype, isinstance(given, np.ndarray | np.generic)):
        raise DataError(
            "input-dtype",
            f"input {port.name!r} needs {dtype.name}, got {array.dtype.name}, which may lose values",
            f"convert it yourself with .astype(np.{dtype.name}), after scaling if the values need it",
        )
    # Engines take C order in native byte order; `ascontiguousarray` would turn a scalar into a vector.
    return np.asarray(array, dtype=dtype, order="C")


def _survives(array: Array, dtype: np.dtype[np.generic], typed: bool) -> bool:
    if typed:
        return bool(np.can_cast(array.dtype, dtype, "safe"))
    with np.errstate(all="ignore"):
        cast = array.astype(dtype) if array.dtype.kind in "biuf" else None
        if cast is None or dtype.kind not in "biuf":
            return array.dtype.kind in "US" and dtype == np.object_
        # Decimal numbers in a list mean float; rounding them to float32 is what the user expects.
        return array.dtype.kind == dtype.kind == "f" or bool((cast == array).all())


def _check_shape(port: Port, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    fits = len(shape) == len(port.shape)
    fits = fits and all(
        isinstance(want, str) or want == have for want, have in zip(port.shape, shape, strict=True)
    )
    if not fits:
        raise DataError(
            "input-shape",
            f"input {port.name!r} needs shape {_show(port.shape)}, got {_show(shape)}",
            _shape_hint(port.shape, shape),
        )
    for want, have in zip(port.shape, shape, strict=True):
        if isinstance(want, str) and want:
            known, where = sizes.setdefault(want, (have, port.name))
            if known != have:
                raise DataError(
                    "input-shape",
                    f"input {port.name!r} has {have} for dimension {want!r}, but {where!r} has {known}",
                    "give every input the same size there",
                )


def _shape_hint(want: Sequence[int | str], have: tuple[int, ...]) -> str:
    if _fits(want[1:], have):
        return "the batch axis is missing: pass x[None]"
    if len(want) == len(have) == 4:
        # axes such that `x.transpose(axes)` has the wanted shape
        for axes, names in (
            ((0, 3, 1, 2), "NHWC, the model takes NCHW"),
            ((0, 2, 3, 1), "NCHW, the model takes NHWC"),
        ):
            if _fits(want, tuple(have[axis] for axis in axes)):
                return f"it looks like {names}: pass x.transpose{axes}"
    if want and want[0] == 1 and _fits(want[1:], have[1:]):
        return "the model is fixed to one sample per call: pass x[i:i+1], or compile it with another --shape"
    return "reshape the array, or compile the model with another --shape"


def _fits(want: Sequence[int | str], have: tuple[int, ...]) -> bool:
    return len(want) == len(have) and all(
        isinstance(need, str) or need == size for need, size in zip(want, have, strict=True)
    )


def _show(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(str(size) if size != "" else "?" for size in shape) + "]"
