"""Runs `model.so` through ctypes. Loading and running import neither TVM nor the IR."""

from __future__ import annotations

import _ctypes
import ctypes
import math
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ....compiler.backend import Array, Arrays, Port, Signature
from ....compiler.errors import ArtifactError, DataError, TargetError
from ....compiler.inputs import InputChecker
from ....compiler.machine import find_machine
from ....compiler.temporary import folder_prefix

LIBRARY = "model.so"
VERSION = 1

# Upper bound of workers: beyond it the pieces of a layer are too few to share.
_MOST_THREADS = 64

# pared_error of an index outside its table.
_BAD_INDEX = 4

# Up to this size an input or output is copied rather than addressed.
_STAGED_BYTES = 16 << 10

_Pointers: TypeAlias = "ctypes.Array[ctypes.c_void_p]"


class _Port(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int32),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(_Port)),
        ("outputs", ctypes.POINTER(_Port)),
        ("isa", ctypes.c_char_p),
        ("arena_bytes", ctypes.c_size_t),
        ("constant_bytes", ctypes.c_size_t),
    )


class _Library:
    """A mapped library and its threads; both go when nobody holds it any more, a running call included."""

    def __init__(self, path: Path, threads: int) -> None:
        self.c = _open(path)
        pool = None
        try:
            self.info = _info(self.c, path)
            if threads > 1:
                pool = _make_pool(self.c, threads)
        finally:
            weakref.finalize(self, _release, self.c, pool)
        self.pool, self.run = pool, self.c.pared_run_on


class _Lane:
    """What one thread needs for runs of its own: arena, pointers, and staging for small arrays.

    Asking NumPy for an array's address takes 2 us, copying a few KiB 0.3 us: small inputs and outputs go
    through buffers whose addresses are known.
    """

    def __init__(self, arena_bytes: int, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        # Anonymous pages start on borders of 4096 bytes.
        self._memory = (ctypes.c_char * arena_bytes).from_buffer(mmap.mmap(-1, arena_bytes))
        self._arena = ctypes.c_void_p(ctypes.addressof(self._memory))
        self._inputs = [_staging(port) for port in inputs]
        self._outputs = [(port.name, _empty(port), _bytes(port) <= _STAGED_BYTES) for port in outputs]
        self._sources = _pointers([0 if a is None else a.ctypes.data for a in self._inputs])
        self._sinks = _pointers([array.ctypes.data for _, array, _ in self._outputs])

    def run_one(self, library: _Library, arrays: Sequence[Array]) -> dict[str, Array]:
        """Run on one sample, into new arrays."""
        for index, (stage, array) in enumerate(zip(self._inputs, arrays, strict=True)):
            if stage is None:
                self._sources[index] = array.ctypes.data
            else:
                stage[...] = array
        results = {}
        for index, (name, stage, small) in enumerate(self._outputs):
            if not small:
                results[name] = np.empty_like(stage)
                self._sinks[index] = results[name].ctypes.data
        _run(library, self._sources, self._sinks, self._arena)
        return {name: stage.copy() if small else results[name] for name, stage, small in self._outputs}

    def run_at(self, library: _Library, sources: Sequence[int], sinks: Sequence[int]) -> None:
        """Run on arrays at the given addresses."""
        _run(library, _pointers(sources), _pointers(sinks), self._arena)


class NativeExecutable:
    """A model's shared library; `run` may be called from several threads at once, each has its arena."""

    def __init__(self, path: Path, threads: int, batched: bool = False) -> None:
        """Load.

        Args:
            path: of the library.
            threads: that share the large steps of a run.
            batched: any number of samples may be given; each is a run of its own.
        """
        self._library: _Library | None = _Library(path, threads)
        info = self._library.info
        self._batched = batched
        self._inputs = [_port(info.inputs[i]) for i in range(info.input_count)]
        self._outputs = [_port(info.outputs[i]) for i in range(info.output_count)]
        shown = _with_batch if batched else tuple
        self._signature = Signature(shown(self._inputs), shown(self._outputs))
        self._bytes = [_bytes(port) for port in (*self._inputs, *self._outputs)]
        self.arena_bytes, self.constant_bytes = int(info.arena_bytes), int(info.constant_bytes)
        self._check = InputChecker(self._signature)
        self._threads = threading.local()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order; all sizes fixed but that of a batch."""
        return self._signature

    def run(self, inputs: Arrays, outputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: by name; contiguous arrays are read where they are.
            outputs: arrays to write results to, by name: contiguous, of the output's dtype and shape, not
                overlapping one another or an input. New ones are made for those left out.

        Raises:
            DataError: a wrong name, shape or dtype, naming it.
            ArtifactError: `artifact-closed`, after `close`.
        """
        library = self._library
        if library is None:
            raise ArtifactError("artifact-closed", "the model was closed", "load it again")
        given = self._check(inputs)
        arrays = [given[port.name] for port in self._inputs]
        samples = arrays[0].shape[0] if self._batched else 1
        lane = self._lane()
        if samples == 1 and not outputs:
            return lane.run_one(library, arrays)
        results = self._results(outputs or {}, samples)
        addresses = [array.ctypes.data for array in (*arrays, *results.values())]
        for sample in range(samples):
            places = [start + sample * size for start, size in zip(addresses, self._bytes, strict=True)]
            lane.run_at(library, places[: len(arrays)], places[len(arrays) :])
        return results

    def close(self) -> None:
        """Let go of the library, its threads and the arenas."""
        self._library = None
        self._threads = threading.local()

    def _results(self, own: Mapping[str, Array], samples: int) -> dict[str, Array]:
        results = {}
        for port in self._outputs:
            shape = tuple(int(size) for size in port.shape)
            shape = (samples * shape[0], *shape[1:]) if self._batched else shape
            made, dtype = own.get(port.name), _numpy_name(port.dtype)
            if made is not None:
                _check_output(port.name, made, shape, dtype)
            results[port.name] = np.empty(shape, dtype) if made is None else made
        unknown = sorted(set(own) - set(results))
        if unknown:
            valid = ", ".join(results)
            raise DataError("output-unknown", f"no output {unknown[0]!r}", f"valid: {valid}")
        return results

    def _lane(self) -> _Lane:
        lane: _Lane | None = getattr(self._threads, "lane", None)
        if lane is None:
            lane = self._threads.lane = _Lane(self.arena_bytes, self._inputs, self._outputs)
        return lane


def load(folder: Path, options: Mapping[str, object], threads: int | None) -> NativeExecutable:
    """Load the payload from an artifact's folder.

    Args:
        folder: of the artifact.
        options: of the payload; `isa` lists what the code uses, checked before any of it is mapped; `batched`
            says that the library computes one sample of a batch.
        threads: per run; None takes every core this process may use.

    Raises:
        ArtifactError: no payload, or it is not one of ours.
        TargetError: `cpu-feature-missing`, naming what this CPU lacks.
    """
    path = folder / LIBRARY
    if not path.is_file():
        raise ArtifactError("artifact-file-missing", f"{folder} has no {LIBRARY}", "compile it again")
    check_cpu(folder, options)
    batched = bool(options.get("batched", False))
    return NativeExecutable(path, threads if threads is not None else usable_cores(), batched)


def check_cpu(folder: Path, options: Mapping[str, object]) -> None:
    """Refuse an artifact whose code uses what this CPU lacks; `options` are those of its engine.

    Raises:
        TargetError: `cpu-feature-missing`, naming what this CPU lacks.
    """
    arch, *features = str(options.get("isa", "")).split() or [""]
    machine = find_machine()
    have = {machine.arch, *machine.cpu_features}
    missing = [name for name in (arch, *features) if name not in have]
    if missing:
        raise TargetError(
            "cpu-feature-missing",
            f"{folder} needs {', '.join(missing)}, which this CPU ({machine.cpu}, {machine.arch}) lacks",
            "compile it for target cpu on this machine, or for another target",
        )


def _open(path: Path) -> ctypes.CDLL:
    """Map a library.

    The loader takes two files of one path for the same library, even when the file was replaced meanwhile, so
    that every load goes by a name of its own; of one file it still keeps one copy.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=folder_prefix("load")) as folder:
            name = Path(folder) / LIBRARY
            name.symlink_to(path.resolve())
            library = ctypes.CDLL(str(name), mode=os.RTLD_NOW)
        library.pared_model_info.restype = ctypes.POINTER(_Info)
        library.pared_pool_create.restype = ctypes.c_void_p
        library.pared_pool_destroy.argtypes = [ctypes.c_void_p]
        library.pared_pool_destroy.restype = None
        library.pared_run_on.argtypes = [ctypes.c_void_p] * 4
    except (OSError, AttributeError) as err:
        raise ArtifactError("artifact-library", f"cannot load {path}: {err}", "compile it again") from err
    return library


def _make_pool(library: ctypes.CDLL, threads: int) -> int:
    pool: int | None = library.pared_pool_create(min(threads, _MOST_THREADS))
    if not pool:
        raise TargetError("threads-unavailable", f"cannot start {threads} threads", "ask for fewer")
    return pool


def _release(library: ctypes.CDLL, pool: int | None) -> None:
    if pool is not None:
        library.pared_pool_destroy(pool)
    _ctypes.dlclose(library._handle)


def _info(library: ctypes.CDLL, path: Path) -> _Info:
    info: _Info = library.pared_model_info().contents
    if info.version != VERSION:
        raise ArtifactError(
            "artifact-version",
            f"{path} has interface version {info.version}, this pared reads {VERSION}",
            "compile it again",
        )
    return info


def _port(port: _Port) -> Port:
    dtype = np.dtype(port.dtype.decode())
    return Port(port.name.decode(), _onnx_name(dtype), tuple(port.shape[i] for i in range(port.rank)))


def _onnx_name(dtype: np.dtype[np.generic]) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype.name, dtype.name.upper())


def _numpy_name(name: str) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _with_batch(ports: Sequence[Port]) -> tuple[Port, ...]:
    return tuple(replace(port, shape=("batch", *port.shape[1:])) for port in ports)


def _bytes(port: Port) -> int:
    return math.prod(map(int, port.shape)) * np.dtype(_numpy_name(port.dtype)).itemsize


def _empty(port: Port) -> Array:
    return np.empty(tuple(map(int, port.shape)), _numpy_name(port.dtype))


def _staging(port: Port) -> Array | None:
    return _empty(port) if _bytes(port) <= _STAGED_BYTES else None


def _run(library: _Library, sources: _Pointers, sinks: _Pointers, arena: ctypes.c_void_p) -> None:
    error = library.run(library.pool, sources, sinks, arena)
    if error == _BAD_INDEX:
        raise DataError(
            "index-out-of-range",
            "an input of whole numbers counts rows of a table (Gather), and holds one that the table lacks",
            "give indices from -n to n - 1 for a table of n rows",
        )
    assert error == 0, f"pared_run_on: error {error}"


def _check_output(name: str, array: Array, shape: tuple[int, ...], dtype: str) -> None:
    fits = (array.shape, array.dtype) == (shape, np.dtype(dtype))
    if fits and array.flags.c_contiguous and array.flags.writeable:
        return
    raise DataError(
        "output-buffer",
        f"output {name!r} needs a contiguous, writable {dtype} array of {list(shape)}, "
        f"got {array.dtype} {list(array.shape)}",
        "make it with numpy.empty",
    )


def _pointers(addresses: Sequence[int]) -> _Pointers:
    return (ctypes.c_void_p * len(addresses))(*addresses)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
