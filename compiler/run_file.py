"""Runs an artifact over a file of samples and writes the outputs to another, all or nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .backend import Array, Arrays, Executable
from .data import Samples, open_samples
from .errors import DataError
from .files import replacing
from .runtime import load
from .simulated import simulation_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class NamedShape:
    """An array as it is in a file: name, NumPy dtype, shape with the samples first."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RunReport:
    """What `pared run` did; `output_bytes` is the size of the written file."""

    artifact: Path
    input: Path
    output: Path
    samples: int
    output_bytes: int
    inputs: tuple[NamedShape, ...]
    outputs: tuple[NamedShape, ...]
    notes: tuple[str, ...]


def run_file(
    artifact: Path, source: Path, output: Path, *, threads: int | None, progress: Progress
) -> RunReport:
    """Run every sample of `source` (`.npz`, `.npy` or folder) and write the outputs to `output` (`.npz`).

    An output whose leading size is that of its inputs is concatenated along it; any other gets a new
    sample axis in front.

    Raises:
        DataError: the samples do not fit, or outputs of different samples differ in shape.
        ArtifactError: the artifact is missing or damaged.
    """
    check_output(output)
    with load(artifact, threads=threads) as executable:
        samples = open_samples(source, executable.signature, purpose="input")
        results = _run_all(executable, samples, progress, executable.best_rows)
        simulated = simulation_of(executable.artifact)
    output_bytes = write_npz(output, results)
    return RunReport(
        artifact=artifact,
        input=source,
        output=output,
        samples=len(samples),
        output_bytes=output_bytes,
        inputs=_inputs(samples),
        outputs=tuple(NamedShape(n, a.dtype.name, a.shape) for n, a in results.items()),
        notes=(*simulated, *samples.notes),
    )


def write_npz(path: Path, arrays: Mapping[str, Array]) -> int:
    """Replace `path` by an `.npz` of the arrays in one step; return its bytes.

    Names are stored as they are, `input:0` and `a/b` included; `np.savez` takes them as keywords and so
    cannot store one called `file`. Raises `OSError`; then nothing is left.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return path.stat().st_size


def check_output(path: Path) -> None:
    """Refuse a place that cannot be written before anything runs; raises `DataError`."""
    if path.suffix != ".npz":
        raise DataError(
            "output-format", f"--output {path}: only .npz files are written", "end the name in .npz"
        )
    if not path.parent.is_dir():
        raise DataError(
            "output-folder", f"--output {path}: the folder does not exist", f"mkdir -p {path.parent}"
        )


def _run_all(
    executable: Executable, samples: Samples, progress: Progress, at_once: int = 1
) -> dict[str, Array]:
    collected: dict[str, list[Array]] = {port.name: [] for port in executable.signature.outputs}
    joins: dict[str, bool] = dict.fromkeys(collected, True)
    for index, inputs in enumerate(samples.batches(at_once)):
        progress("run", index * at_once, len(samples))
        rows = _rows(inputs)
        for name, array in executable.run(inputs).items():
            collected[name].append(array)
            joins[name] &= array.ndim > 0 and array.shape[0] == rows
    progress("run", len(samples), len(samples))
    return {name: _join(name, arrays, joins[name]) for name, arrays in collected.items()}


def _rows(inputs: Arrays) -> int | None:
    return next((array.shape[0] for array in inputs.values() if array.ndim), None)


def _join(name: str, arrays: Sequence[Array], concatenate: bool) -> Array:
    try:
        return np.concatenate(arrays) if concatenate else np.stack(arrays)
    except ValueError as err:
        shapes = sorted({str(list(array.shape)) for array in arrays})
        raise DataError(
            "output-shapes-differ",
            f"output {name!r} has different shapes for different samples: {', '.join(shapes[:4])}",
            "run the samples one file at a time",
        ) from err


def _inputs(samples: Samples) -> tuple[NamedShape, ...]:
    first = next(iter(samples.batches()))
    count = len(samples)
    return tuple(
        NamedShape(
            name, array.dtype.name, (count * array.shape[0], *array.shape[1:]) if array.ndim else (count,)
        )
        for name, array in first.items()
    )
