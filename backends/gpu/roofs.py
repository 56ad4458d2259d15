"""The most a device does: copies within its memory, and tensor cores fed from registers alone.

The kernels are PTX, which the driver compiles for whatever chip is here, so no toolkit is needed. They use
`mma.sync`, which every chip from sm_80 on has; `wgmma` of sm_90 goes beyond it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from ...compiler.errors import ParedError
from ...compiler.metering import Roofs
from .driver import CudaDevice

_COPIED, _LEAST_COPIED = 1 << 28, 1 << 24
_RUNS, _WARM = 10, 3
_BLOCK, _BLOCKS_PER_PROCESSOR = 256, 4  # with 44 registers per thread all of them run at once
_CHAINS, _ROUNDS = 8, 2048  # independent products per warp, so that none waits for another


@dataclass(frozen=True)
class _Product:
    """One instruction: a 16 x 8 x `depth` product per warp."""

    instruction: str
    depth: int
    registers: str
    store: str
    fill: str

    @property
    def ops(self) -> int:
        """Operations of one instruction."""
        return 2 * 16 * 8 * self.depth


# Fills are finite small numbers: two halves near 1, four bytes near 1.
_PRODUCTS = {
    "half": _Product("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16, "f32", "f32", "0x3c003c00"),
    "int8": _Product("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 32, "b32", "u32", "0x01010101"),
}


def source(kind: str) -> str:
    """Return the PTX of a kernel `kind` that keeps the tensor cores busy; it writes 4 bytes per thread."""
    product = _PRODUCTS[kind]
    chains = range(_CHAINS)
    zero = "0f00000000" if product.registers == "f32" else "0"
    move, add = f"mov.{product.registers}", "add.f32" if product.registers == "f32" else "add.s32"
    start = "\n".join(f"{move} %c{i}, {zero};" for i in range(4 * _CHAINS))
    body = "\n".join(
        f"{product.instruction} {{%c{4 * i}, %c{4 * i + 1}, %c{4 * i + 2}, %c{4 * i + 3}}}, "
        "{%a0, %a1, %a2, %a3}, {%b0, %b1}, "
        f"{{%c{4 * i}, %c{4 * i + 1}, %c{4 * i + 2}, %c{4 * i + 3}}};"
        for i in chains
    )
    total = "\n".join(f"{add} %c0, %c0, %c{i};" for i in range(1, 4 * _CHAINS))
    operands = "\n".join(
        f"xor.b32 %{name}, %lane, {product.fill};" for name in ("a0", "a1", "a2", "a3", "b0", "b1")
    )
    return f""".version 7.0
.target sm_80
.address_size 64
.visible .entry {kind}(.param .u64 out) {{
.reg .b32 %a<4>, %b<2>, %lane, %block, %size, %index, %round;
.reg .{product.registers} %c<{4 * _CHAINS}>;
.reg .b64 %to, %offset;
.reg .pred %more;
mov.u32 %lane, %tid.x;
mov.u32 %block, %ctaid.x;
mov.u32 %size, %ntid.x;
mad.lo.u32 %index, %block, %size, %lane;
and.b32 %lane, %lane, 1;
{operands}
{start}
mov.u32 %round, 0;
again:
{body}
add.u32 %round, %round, 1;
setp.lt.u32 %more, %round, {_ROUNDS};
@%more bra again;
{total}
ld.param.u64 %to, [out];
cvta.to.global.u64 %to, %to;
mul.wide.u32 %offset, %index, 4;
add.u64 %to, %to, %offset;
st.global.{product.store} [%to], %c0;
ret;
}}
"""


def measure_roofs(device: CudaDevice) -> Roofs:
    """Measure copies and products; a kind of product that does not run is missing with the reason.

    Raises:
        ParedError: `cuda-out-of-memory`: no room for the smallest copy.
    """
    rate, size = _copy_rate(device)
    found, missing = {}, {}
    for kind in _PRODUCTS:
        try:
            found[kind] = _product_rate(device, kind)
        except ParedError as err:
            if err.reason == "cuda-context-lost":
                raise
            missing[kind] = err.message
    how = (
        f"medians of {_RUNS} by CUDA events: copies of {size >> 20} MiB within device memory; "
        "mma.sync on registers alone"
    )
    return Roofs(rate, found, how, missing)


def _copy_rate(device: CudaDevice) -> tuple[float, int]:
    """Return bytes read and written per second, and how much was copied at once: less where room is short."""
    size = _COPIED
    while True:
        try:
            return 2 * size / _copy_seconds(device, size), size
        except ParedError as err:
            if err.reason != "cuda-out-of-memory" or size <= _LEAST_COPIED:
                raise
        size //= 4


def _copy_seconds(device: CudaDevice, size: int) -> float:
    room: list[int] = []
    try:
        room += [device.lend(size)]
        room += [device.lend(size)]
        return _seconds(device, lambda: device.copy(room[1], room[0], size))
    finally:
        for address in room:
            device.take_back(address)


def _product_rate(device: CudaDevice, kind: str) -> float:
    blocks = _BLOCKS_PER_PROCESSOR * device.processors
    handle = device.functions(source(kind).encode() + b"\0", [kind])[kind]
    out = device.lend(4 * blocks * _BLOCK)
    try:
        seconds = _seconds(device, lambda: device.launch(handle, (blocks, 1, 1), (_BLOCK, 1, 1), 0, [out]))
    finally:
        device.take_back(out)
    return blocks * (_BLOCK // 32) * _ROUNDS * _CHAINS * _PRODUCTS[kind].ops / seconds


def _seconds(device: CudaDevice, queue: Callable[[], None]) -> float:
    device.times_ms(queue, _WARM)
    return statistics.median(device.times_ms(queue, _RUNS)) / 1e3
