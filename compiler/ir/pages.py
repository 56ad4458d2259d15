"""Weights that lie in files: mapped while they are read, and put there when they take much memory.

Pages of a mapped file count as this process's memory once they were read, until the system wants them for
something else. A model of 1 GB read layer by layer needs 1 GB that way; dropped after use, one layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import tempfile
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .walk import all_graphs

# Models with fewer bytes of constants in memory are left alone.
SPILLED_BYTES = 128 << 20
_BIG_TENSOR = 1 << 16


class TransientTensor(ir.ExternalTensor):
    """A tensor in a file that is mapped only while someone holds its array.

    Its base class keeps mapping and array for good, so whoever has read all weights of a model holds all of
    them. Here every read maps anew (some 50 us), and the memory goes with the last reference to the array.
    """

    __slots__ = ()

    @classmethod
    def of(cls, tensor: ir.ExternalTensor, folder: Path) -> TransientTensor:
        """Return a tensor with the data of `tensor`, whose file lies in `folder`."""
        return cls(
            tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape,
            name=tensor.name, doc_string=tensor.doc_string, base_dir=folder,
        )  # fmt: skip

    def _read(self) -> ir.ExternalTensor:
        self._check_validity()
        return ir.ExternalTensor(
            self.location, self.offset, self.length, self.dtype, shape=self.shape, name=self.name,
            base_dir=self.base_dir,
        )  # fmt: skip

    def numpy(self) -> npt.NDArray[np.generic]:
        """Return the data as an array that keeps its own mapping alive."""
        array: npt.NDArray[np.generic] = self._read().numpy()
        return array

    def __array__(self, dtype: npt.DTypeLike | None = None) -> npt.NDArray[np.generic]:
        """Return the data as an array, for NumPy."""
        return np.asarray(self.numpy(), dtype)

    def tobytes(self) -> bytes:
        """Return a copy of the bytes."""
        return bytes(self._read().tobytes())


def is_mapped(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.ExternalTensor]:
    """Say whether a tensor's data is a file that is mapped when it is read."""
    return isinstance(tensor, ir.ExternalTensor)


def drop_pages(tensor: ir.TensorProtocol | None) -> None:
    """Give back what was read of a mapped tensor; its arrays stay valid and are read from the file again."""
    if is_mapped(tensor) and tensor.raw is not None and hasattr(mmap, "MADV_DONTNEED"):
        tensor.raw.madvise(mmap.MADV_DONTNEED)


def drop_all_pages(model: ir.Model) -> None:
    """Give back what was read of all mapped constants of a model, bodies included."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            drop_pages(value.const_value)


def spill(model: ir.Model, folder: Path, least: int = SPILLED_BYTES) -> int:
    """Move big constants from memory to a new file in `folder`, in place; returns the bytes moved.

    Nothing is moved unless they are `least` bytes together. Raises OSError.
    """
    values = [value for graph in all_graphs(model) for value in graph.initializers.values()]
    big = [value for value in values if _is_big(value.const_value)]
    if sum(value.const_value.nbytes for value in big if value.const_value is not None) < least:
        return 0
    handle, name = tempfile.mkstemp(".bin", "weights-", folder)
    with open(handle, "wb") as file:
        for value in big:
            tensor = value.const_value
            assert isinstance(tensor, ir.Tensor), "only tensors in memory were selected"
            offset = file.tell()
            tensor.tofile(file)
            value.const_value = TransientTensor(
                Path(name).name, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
                name=tensor.name or "", base_dir=folder,
            )  # fmt: skip
        return file.tell()


def release_memory() -> None:
    """Give memory that nothing uses back to the system.

    Graphs are cyclic, and the C library keeps what is freed. Takes some 0.1 s, so only for heavy models.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it; others give back by themselves
        ctypes.CDLL(None).malloc_trim(0)


def _is_big(tensor: ir.TensorProtocol | None) -> bool:
    return (
        isinstance(tensor, ir.Tensor) and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _BIG_TENSOR
    )
