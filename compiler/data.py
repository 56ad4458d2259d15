"""Calibration, test and run-time samples: opened, checked against the model's inputs, read in a stream.

Sources are an `.npz` or `.npy` file, a folder of `.npy` files, a mapping of arrays (first axis = samples) or
any iterable of dicts. Everything is checked once when opened, so that later passes over it cannot fail.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .backend import Array, Port, Signature
from .data_columns import ArrayColumn, Column, folder_columns, npy_column, npz_columns
from .data_fit import Fit, fit_column
from .data_spool import Spool, spool_samples
from .errors import DataError, nearest

LABEL_NAMES = ("labels", "label", "y", "targets")
UNNAMED = ("arr_0", "x")
_SCAN_BYTES = 4 << 20

Source = str | Path | Mapping[str, npt.ArrayLike] | Iterable[Mapping[str, npt.ArrayLike]]


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Checked samples that can be read again and again.

    Attributes:
        labels: first axis = samples, or None.
        digest: sha256 over names, dtypes, shapes and values as delivered, and labels; the same content gives
            the same digest from any kind of source.
        notes: what was done to the data, such as casts.
    """

    labels: Array | None
    digest: str
    notes: tuple[str, ...]
    _fits: tuple[Fit, ...]
    _count: int
    _spool: Spool | None = None  # keeps the temporary files alive

    def __len__(self) -> int:
        return self._count

    @property
    def batchable(self) -> bool:
        """Whether `batches(size > 1)` is possible: every input has a symbolic leading dimension."""
        return all(fit.batchable for fit in self._fits)

    def batches(self, size: int = 1) -> Iterator[dict[str, Array]]:
        """Yield inputs of `size` samples (the last may be fewer) in the model's dtypes and shapes.

        Raises:
            DataError: `batch-fixed` when `size > 1` and an input has a fixed leading dimension.
        """
        if size > 1 and not self.batchable:
            fixed = next(fit.port for fit in self._fits if not fit.batchable)
            raise DataError(
                "batch-fixed",
                f"input {fixed.name!r} has the fixed shape {list(fixed.shape)}; batches of {size} do not fit",
                "use batch 1, or compile the model with a symbolic leading dimension",
            )
        streams = [fit.deliver(size) for fit in self._fits]
        for start, arrays in zip(range(0, self._count, size), zip(*streams, strict=False), strict=False):
            wanted = min(size, self._count - start)
            yield {f.port.name: f.cut(a, wanted) for f, a in zip(self._fits, arrays, strict=True)}

    def head(self, n: int) -> Samples:
        """Return the first `n` samples, sharing storage; the digest tells them from the whole."""
        if n >= self._count:
            return self
        labels = None if self.labels is None else self.labels[: n * len(self.labels) // self._count]
        digest = hashlib.sha256(f"{self.digest}[:{n}]".encode()).hexdigest()
        return dataclasses.replace(self, labels=labels, digest=digest, _count=n)


def open_samples(source: Source | Samples, signature: Signature, *, purpose: str) -> Samples:
    """Open samples for the inputs of `signature`.

    A model input with leading dimension 1 takes sample i as shape (1, ...); a symbolic leading dimension
    permits batches; a fixed leading dimension b > 1 takes b rows a time; data that carry the model's whole
    shape behind the sample axis work too.

    Args:
        source: a path, a mapping of arrays, an iterable of dicts (spooled to disk), or `Samples` (returned).
        signature: the model's inputs.
        purpose: `calibration`, `test`, `input`, ...: prefix of the reason codes.

    Raises:
        DataError: with reason `<purpose>-` empty, missing-file, format, corrupt, pickled, wrong-name,
            missing-input, shape, layout, dtype, nan, inf, counts, labels or spool.
    """
    if isinstance(source, Samples):
        return source
    try:
        return _opened(source, signature, purpose)
    except DataError as err:
        if not isinstance(source, str | Path) or str(source) in err.message:
            raise
        raise DataError(err.reason, f"{source}: {err.message}", err.next_step) from err


def _opened(source: Source, signature: Signature, purpose: str) -> Samples:
    spool, columns = _columns(source, signature, purpose)
    labels_name = _labels_name(columns, signature)
    columns, notes = _named(columns, signature, labels_name, purpose)
    fits = tuple(fit_column(port, columns[port.name], purpose) for port in signature.inputs)
    count = _count(fits, purpose)
    labels = _labels(columns, labels_name, {count, *(fit.column.shape[0] for fit in fits)}, purpose)
    notes += [fit.note for fit in fits if fit.note]
    digest, constant = _scan(fits, labels, purpose)
    if purpose == "calibration":
        notes += [f"input {name!r} is the same number throughout the calibration data" for name in constant]
    return Samples(labels, digest, tuple(notes), fits, count, spool)


def _columns(source: Source, signature: Signature, purpose: str) -> tuple[Spool | None, dict[str, Column]]:
    if isinstance(source, str | Path):
        return None, _file_columns(Path(source), purpose)
    if isinstance(source, np.ndarray):
        return None, _memory_columns({UNNAMED[0]: source}, purpose)
    if isinstance(source, Mapping):
        return None, _memory_columns(source, purpose)
    if isinstance(source, Iterable):
        ranks = {port.name: len(port.shape) for port in signature.inputs}
        return spool_samples(source, ranks, purpose)
    raise DataError(
        f"{purpose}-format",
        f"cannot read samples from a {type(source).__name__}",
        "give a .npz path, a folder of .npy files, a mapping of arrays or an iterable of dicts",
    )


def _file_columns(path: Path, purpose: str) -> dict[str, Column]:
    if path.is_dir():
        return folder_columns(path, purpose)
    if not path.exists():
        raise DataError(f"{purpose}-missing-file", f"{path}: no such file or folder", "check the path")
    if path.suffix == ".npz":
        return npz_columns(path, purpose)
    if path.suffix == ".npy":
        return {UNNAMED[0]: npy_column(path, purpose)}
    raise DataError(
        f"{purpose}-format",
        f"{path}: {path.suffix or 'a file without suffix'} is not a data format that is read",
        "give a .npz, a .npy or a folder of .npy files",
    )


def _memory_columns(arrays: Mapping[str, npt.ArrayLike], purpose: str) -> dict[str, Column]:
    found: dict[str, Column] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise DataError(
                f"{purpose}-pickled",
                f"{name!r} becomes an array of Python objects (rows of different length, or not numbers)",
                "make it a plain numeric array",
            )
        found[str(name)] = ArrayColumn(array)
    return found


def _is_numeric(column: Column) -> bool:
    return np.issubdtype(column.dtype, np.number) or column.dtype == np.bool_


def _labels_name(columns: Mapping[str, Column], signature: Signature) -> str | None:
    inputs = {port.name for port in signature.inputs}
    wanted = [n for n in LABEL_NAMES if n in columns and n not in inputs and _is_numeric(columns[n])]
    return wanted[0] if wanted else None


def _named(
    columns: dict[str, Column], signature: Signature, labels_name: str | None, purpose: str
) -> tuple[dict[str, Column], list[str]]:
    """Return columns under the model's names, and notes; raises for missing and wrong names."""
    inputs = [port.name for port in signature.inputs]
    missing = [name for name in inputs if name not in columns]
    extra = [name for name in columns if name not in inputs and name != labels_name]
    if not columns:
        raise DataError(f"{purpose}-empty", f"no arrays in the {purpose} data", _shape_help(signature.inputs))
    if missing == inputs and len(inputs) == 1 and len(extra) == 1 and extra[0] in UNNAMED:
        renamed = {inputs[0] if name == extra[0] else name: column for name, column in columns.items()}
        return renamed, [f"array {extra[0]!r} taken as the only input {inputs[0]!r}"]
    if missing and extra:
        raise DataError(
            f"{purpose}-wrong-name",
            f"the model has no input {extra[0]!r} and lacks data for {', '.join(map(repr, missing))}",
            f"rename the array: {nearest(extra[0], inputs)}",
        )
    if missing:
        raise DataError(
            f"{purpose}-missing-input",
            f"no data for model input {', '.join(map(repr, missing))}; found {sorted(columns)}",
            _shape_help(signature.inputs),
        )
    return columns, [f"array {name!r} is no input of the model and is ignored" for name in extra]


def _shape_help(ports: Sequence[Port]) -> str:
    wanted = ", ".join(f"{port.name}: {port.dtype} {list(port.shape)}" for port in ports)
    return f"give one array per input, first axis = samples; the model takes {wanted}"


def _count(fits: Sequence[Fit], purpose: str) -> int:
    counts = {fit.port.name: fit.count for fit in fits}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{purpose}-counts",
            "inputs have different numbers of samples: " + ", ".join(f"{k!r} {v}" for k, v in counts.items()),
            "give every input the same number of samples",
        )
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise DataError(f"{purpose}-empty", f"the {purpose} data hold no samples", "give at least one sample")
    return count


def _labels(columns: Mapping[str, Column], name: str | None, allowed: set[int], purpose: str) -> Array | None:
    if name is None:
        return None
    column = columns[name]
    found = column.shape[0] if column.shape else 0
    if found not in allowed:
        raise DataError(
            f"{purpose}-labels",
            f"{found} labels in {name!r} for {' or '.join(map(str, sorted(allowed)))} samples",
            "give one label per sample",
        )
    labels = np.concatenate(list(column.blocks(max(found, 1))))
    if labels.dtype.kind in "fc" and not np.isfinite(labels).all():
        raise DataError(f"{purpose}-labels", f"labels in {name!r} contain NaN or Inf", "clean the labels")
    return labels


def _scan(fits: Sequence[Fit], labels: Array | None, purpose: str) -> tuple[str, list[str]]:
    """Read everything once: refuse NaN, Inf and lossy casts, and hash what will be delivered.

    Returns:
        The digest, and the inputs of more than one float a sample whose floats are all equal.
    """
    digest = hashlib.sha256()
    constant = []
    for fit in sorted(fits, key=lambda fit: fit.port.name):
        digest.update(f"{fit.port.name}|{fit.dtype.str}|{fit.row_shape}|{fit.column.shape[0]}|".encode())
        row_bytes = fit.column.dtype.itemsize * math.prod(fit.column.shape[1:])
        seen: set[float] = set()
        for block in fit.checked(max(1, _SCAN_BYTES // max(row_bytes, 1)), purpose):
            digest.update(block.tobytes())
            if len(seen) < 2 and block.dtype.kind == "f" and math.prod(fit.column.shape[1:]) > 1:
                seen |= {float(block.min()), float(block.max())}
        if len(seen) == 1:
            constant.append(fit.port.name)
    if labels is not None:
        digest.update(f"labels|{labels.dtype.str}|{labels.shape}|".encode())
        digest.update(labels.tobytes())
    return digest.hexdigest(), constant
