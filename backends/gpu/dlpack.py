"""Tensors of other libraries without copies: the exchange protocol DLPack, taken and offered through ctypes.

Layouts of the structures: https://github.com/dmlc/dlpack/blob/v1.0/include/dlpack/dlpack.h
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from math import prod
from typing import cast

import numpy as np

from ...compiler.backend import Array
from ...compiler.errors import DataError
from ...compiler.inputs import DTYPES
from .device import Device

# Memory that this machine's processor reads: kDLCPU, kDLCUDAHost.
HOST_PLACES = (1, 3)
_CUDA, _MANAGED = 2, 13
# ONNX dtype -> type code (int 0, uint 1, float 2, bfloat 4, bool 6) and bits of DLPack.
_TYPES: Mapping[str, tuple[int, int]] = {
    "FLOAT": (2, 32), "DOUBLE": (2, 64), "FLOAT16": (2, 16), "BFLOAT16": (4, 16),
    "INT8": (0, 8), "INT16": (0, 16), "INT32": (0, 32), "INT64": (0, 64),
    "UINT8": (1, 8), "UINT16": (1, 16), "UINT32": (1, 32), "UINT64": (1, 64), "BOOL": (6, 8),
}  # fmt: skip
_NAMES = {kind: name for name, kind in _TYPES.items()}
_READ_ONLY = 1
_VERSION = (1, 0)


class _Place(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("place", _Place), ("ndim", ctypes.c_int32), ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", _Deleter), ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    )  # fmt: skip


# Names are compared by text but kept by address: these must live as long as the process.
_PLAIN, _USED_PLAIN = ctypes.c_char_p(b"dltensor"), ctypes.c_char_p(b"used_dltensor")
_NEW, _USED_NEW = ctypes.c_char_p(b"dltensor_versioned"), ctypes.c_char_p(b"used_dltensor_versioned")
_KINDS = ((_NEW, _USED_NEW, _Versioned), (_PLAIN, _USED_PLAIN, _Managed))

_python = ctypes.PyDLL(None)
_python.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_New.restype = ctypes.py_object


class Borrowed:
    """A tensor of another library, until `release`.

    Attributes:
        address: of its first element.
        dtype: ONNX spelling; `?` for what ONNX has not.
        place: type and index of its memory.
        read_only: its owner wants it left as it is.
    """

    def __init__(self, value: object, place: tuple[int, int], stream: int | None) -> None:
        capsule = _capsule(value, stream if place[0] in (_CUDA, _MANAGED) else None)
        kinds = [entry for entry in _KINDS if _python.PyCapsule_IsValid(capsule, entry[0])]
        if not kinds:
            raise _refused(value, "its capsule is of another kind, or was used")
        name, used, kind = kinds[0]
        pointer = _python.PyCapsule_GetPointer(capsule, name)
        _python.PyCapsule_SetName(capsule, used)
        managed = kind.from_address(pointer)
        self._release: Callable[[], object] | None = lambda: managed.deleter and managed.deleter(pointer)
        self.read_only = kind is _Versioned and bool(managed.flags & _READ_ONLY)
        self._read(managed.tensor)

    def _read(self, tensor: _Tensor) -> None:
        self.address: int = (tensor.data or 0) + tensor.byte_offset
        self.place = (tensor.place.type, tensor.place.index)
        self.shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        known = _NAMES.get((tensor.type.code, tensor.type.bits), "?")
        self.dtype = known if tensor.type.lanes == 1 else "?"
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
        self.contiguous = strides is None or _is_contiguous(self.shape, strides)

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether elements lie in C order; strides of axes of one element mean nothing."""
    want = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return 0 in shape or all(
        size == 1 or have == need for size, have, need in zip(shape, strides, want, strict=True)
    )


def place_of(value: object) -> tuple[int, int] | None:
    """Return where a tensor lies; None for what does not speak DLPack, and for NumPy's arrays."""
    ask = getattr(value, "__dlpack_device__", None)
    if ask is None or isinstance(value, np.ndarray | np.generic) or not hasattr(value, "__dlpack__"):
        return None
    kind, index = ask()
    return int(kind), int(index)


def _capsule(value: object, stream: int | None) -> object:
    offer = cast(Callable[..., object], value.__dlpack__)  # type: ignore[attr-defined]
    options = {} if stream is None else {"stream": stream}
    try:
        try:
            return offer(**options, max_version=_VERSION)
        except TypeError:  # from before version 1.0
            return offer(**options)
    except (BufferError, RuntimeError, TypeError, ValueError) as err:
        raise _refused(value, str(err)) from err


def _refused(value: object, why: str) -> DataError:
    return DataError(
        "tensor-refused",
        f"a {type(value).__name__} cannot be taken as it is: {why.strip() or 'it does not say why'}",
        "pass a plain tensor (.detach()), or a NumPy array",
    )


def host_array(value: object) -> Array:
    """Return a tensor in this machine's memory as an array that shares it."""
    try:
        return np.from_dlpack(value)  # type: ignore[arg-type]
    except (BufferError, RuntimeError, TypeError, ValueError) as err:
        raise _refused(value, str(err)) from err


class _Loan:
    """Memory of a device, taken back when nobody holds it."""

    def __init__(self, device: Device, count: int) -> None:
        self.address = device.lend(count)
        weakref.finalize(self, device.take_back, self.address).atexit = False


class DeviceTensor:
    """An output that stays on the device; other libraries take it over with `from_dlpack`.

    Args:
        device: where.
        shape, dtype: `dtype` in ONNX spelling.

    What it holds is there when the call that returns it is done, so no stream has to wait.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(DTYPES[dtype])
        self._device, self._kind, self._place = device, _TYPES[dtype], device.place
        self.nbytes = prod(shape) * self.dtype.itemsize
        self._loan = _Loan(device, self.nbytes)

    @property
    def address(self) -> int:
        """Where its first element lies."""
        return self._loan.address

    def numpy(self) -> Array:
        """Return a copy in this machine's memory."""
        host = np.empty(self.shape, self.dtype)
        self._device.fetch(host.reshape(-1).view(np.uint8), self.address)
        return host

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return type and index of its memory."""
        return self._place

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule; `stream` may be anything but 0, which the protocol leaves without a meaning."""
        if stream == 0 and self._place[0] == _CUDA:
            raise BufferError("stream 0 is ambiguous: pass 1 for the legacy default stream")
        if copy or (dl_device is not None and tuple(dl_device) != self._place):
            raise BufferError("only the memory itself is offered, no copy of it")
        versioned = max_version is not None and max_version[0] >= _VERSION[0]
        return _offered(self, self._loan, self._kind, versioned=versioned)


# Structures that other libraries hold, by address, with what they stand for.
_offers: dict[int, tuple[object, ...]] = {}


def _offered(tensor: DeviceTensor, loan: _Loan, kind: tuple[int, int], *, versioned: bool) -> object:
    rank = len(tensor.shape)
    shape = (ctypes.c_int64 * rank)(*tensor.shape)
    strides = (ctypes.c_int64 * rank)(*(prod(tensor.shape[i + 1 :]) for i in range(rank)))
    inner = _Tensor(
        loan.address, _Place(*tensor.__dlpack_device__()), rank, _Type(*kind, 1),
        ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)), 0,
    )  # fmt: skip
    managed = _Versioned(*_VERSION, None, _drop, 0, inner) if versioned else _Managed(inner, None, _drop)
    address = ctypes.addressof(managed)
    _offers[address] = (managed, shape, strides, loan)
    name = _NEW if versioned else _PLAIN
    return _python.PyCapsule_New(ctypes.c_void_p(address), name, _unused)


def _forget(address: int) -> None:
    _offers.pop(address, None)


_drop = _Deleter(_forget)


# The capsule is dying here: as a number, so that nobody counts references to it.
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_GetName", _python))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)


def _died(capsule: int) -> None:
    """Drop an offer that nobody took; taken ones have another name and are dropped by who took them."""
    name = _capsule_name(capsule)
    if name in (_NEW.value, _PLAIN.value):
        _forget(_capsule_pointer(capsule, name))


_unused = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_died)
