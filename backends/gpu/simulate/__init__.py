"""Generated CUDA C++ on this CPU thread by thread: mapping, shared memory, barriers, warps, tensor cores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....compiler.backend import Array
from ..program import Dims
from .device import SimulatedDevice, images
from .errors import SimulationError

__all__ = ["SimulatedDevice", "SimulationError", "images", "simulate"]


def simulate(
    source: str,
    kernel: str,
    grid: Dims,
    block: Dims,
    shared: int,
    buffers: Sequence[Array],
    *,
    arch: str = "sm_90",
    contract: bool = False,
    orders: bool = True,
) -> None:
    """Run one kernel; `buffers` are its arguments and hold afterwards what it left there.

    Args:
        source: CUDA C++.
        kernel: its name.
        grid: blocks, x first.
        block: threads of each.
        shared: bytes of dynamic shared memory.
        buffers: C-contiguous arrays, each in memory of its own between pages that cannot be touched.
        arch: the chip it stands for.
        contract: fused multiply-adds are permitted.
        orders: run it in both orders of threads and compare.

    Raises:
        MissingTool: g++ is not here.
        SimulationError: it does what no device permits; the two orders differ.
    """
    device = SimulatedDevice(arch, orders)
    try:
        addresses = [device.allocate(buffer.nbytes) for buffer in buffers]
        for address, buffer in zip(addresses, buffers, strict=True):
            device.upload(address, np.frombuffer(np.ascontiguousarray(buffer).tobytes(), np.uint8))
        function = device.functions(images((source, source))[0 if contract else 1], [kernel])[kernel]
        device.launch(function, grid, block, shared, addresses)
        for address, buffer in zip(addresses, buffers, strict=True):
            if buffer.flags.writeable and buffer.nbytes:
                device.download(buffer.reshape(-1).view(np.uint8), address)
    finally:
        device.close()
