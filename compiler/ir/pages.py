"""Memory of mapped weights, given back while the weights stay readable.

Pages of a mapped file count as this process's memory once they were read, until the system wants them for
something else. A model of 1 GB read layer by layer needs 1 GB that way; dropped after use, one layer.
"""

from __future__ import annotations

import mmap
from typing import TypeGuard

import onnx_ir as ir

from .walk import all_graphs


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
