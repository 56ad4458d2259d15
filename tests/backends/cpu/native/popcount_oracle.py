"""Compiles kernels for this machine and computes what they should give, with NumPy alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")


@functools.cache
def isa():
    """Return this machine's instruction set."""
    from pared.backends.cpu.native.isa import Isa, host_isa

    found = host_isa()
    if not isinstance(found, Isa):
        pytest.skip(found.reason)
    return found


def compile_kernel(module):
    """Return the compiled function and the module, whose assembly `inspect_source("asm")` shows."""
    library = tvm.compile(module, target=tvm.target.Target({**isa().llvm_target, "num-cores": 1}))
    return library["main"], library.mod


def run_kernel(module, arrays, out_shape, out_dtype, tasks, fill=7):
    """Run all tasks, in two calls where there are two; the output starts with garbage."""
    function, _ = compile_kernel(module)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
    out = tvm.runtime.tensor(np.full(out_shape, fill, out_dtype))
    function(*tensors, out, 0, tasks // 2)
    function(*tensors, out, tasks // 2, tasks)
    return out.numpy()


def convolve(data, weight, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)):
    """Integer convolution of NHWC data with OIHW weights, padded with 0; returns NHWC int64."""
    top, left, bottom, right = pads
    data = np.pad(data.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    rows, columns = ((data.shape[i + 1] - reach[i]) // strides[i] + 1 for i in (0, 1))
    total = np.zeros((data.shape[0], rows, columns, weight.shape[0]), np.int64)
    for r in range(weight.shape[2]):
        for s in range(weight.shape[3]):
            y, x = r * dilations[0], s * dilations[1]
            window = data[:, y : y + (rows - 1) * strides[0] + 1 : strides[0]]
            window = window[:, :, x : x + (columns - 1) * strides[1] + 1 : strides[1]]
            total += window @ weight[:, :, r, s].astype(np.int64).T
    return total
