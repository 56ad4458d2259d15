"""Digests of tensors, computed once per tensor object."""

from __future__ import annotations

import hashlib
import weakref

import numpy as np
import onnx_ir as ir

_CHUNK = 1 << 22

# Constants are frozen at import and passes build new tensors, so a tensor object never changes.
_KNOWN: weakref.WeakKeyDictionary[ir.TensorProtocol, str] = weakref.WeakKeyDictionary()


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """Return the sha256 of a tensor's dtype, shape and bytes; external data is read in pieces."""
    known = _KNOWN.get(tensor)
    if known is None:
        known = _KNOWN[tensor] = _digest(tensor)
    return known


def _digest(tensor: ir.TensorProtocol) -> str:
    digest = hashlib.sha256(f"{tensor.dtype.name}{list(tensor.shape.numpy())}".encode())
    if isinstance(tensor, ir.ExternalTensor):
        _update_from_file(digest, tensor)
    elif tensor.dtype == ir.DataType.STRING:
        digest.update(repr(tensor.numpy().tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _update_from_file(digest: hashlib._Hash, tensor: ir.ExternalTensor) -> None:
    left = tensor.length or tensor.nbytes
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left > 0 and (piece := file.read(min(_CHUNK, left))):
            digest.update(piece)
            left -= len(piece)
