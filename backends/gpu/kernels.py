"""Scheduled functions as CUDA kernels: what TVM generates, and how each kernel is launched."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .by_library import around_product, by_library, read_choice
from .program import DeviceFunction, Dims, Kernel, Tensor
from .schedules import lowbit
from .schedules.base import Chip, chip_of, target_of
from .schedules.copies import with_copies
from .schedules.table import alternatives, choose

if TYPE_CHECKING:
    import tvm
    from tvm import s_tir, tirx

_AXES = {"blockIdx": 0, "threadIdx": 1}

# TVM would let a buffer of one type live in the memory of another, and then refuses the tensor cores' loads.
# Copies that a schedule asks to be asynchronous are `cp.async`; others stay what they are.
_LOWERING = {"tirx.disable_storage_rewrite": True, "tirx.use_async_copy": True}
_BYTES_OF_VECTOR = re.compile(r"make_int([24])\(((?:\(signed char\)-?\d+(?:, )?){8,16})\)")


@dataclass(frozen=True)
class Kernels:
    """Device code.

    Attributes:
        sources: CUDA C++ of kernels whose floats may be contracted to fused multiply-adds, and of those
            where each product and each sum rounds once, as the model says; empty where there are none.
        functions: by name.
        choices: the schedule of every function, by name (schedules/table.py).
    """

    sources: tuple[str, str]
    functions: Mapping[str, DeviceFunction]
    choices: Mapping[str, str]


def schedule(
    functions: Mapping[str, tirx.PrimFunc], arch: str, wanted: Mapping[str, str] | None = None
) -> tuple[dict[str, tirx.PrimFunc], dict[str, str]]:
    """Map every function to threads; return them, and the name of each one's schedule.

    `wanted` are schedules by function, where one that is not the static choice was timed and won.
    """
    chip = chip_of(arch)
    scheduled: dict[str, tirx.PrimFunc] = {}
    choices: dict[str, str] = {}
    for name, function in functions.items():
        named = function.with_attr("global_symbol", name)
        choices[name], mapped = _wanted(named, chip, (wanted or {}).get(name)) or choose(named, chip)
        scheduled[name] = mapped.with_attr("global_symbol", name)
    return scheduled, choices


def _wanted(function: tirx.PrimFunc, chip: Chip, name: str | None) -> tuple[str, tirx.PrimFunc] | None:
    if name is None:
        return None
    if read_choice(name) is not None:
        around = around_product(function, chip)
        return None if around is None else (name, around)
    return next((pair for pair in alternatives(function, chip) if pair[0] == name), None)


def build(
    functions: Mapping[str, tirx.PrimFunc], arch: str, wanted: Mapping[str, str] | None = None
) -> Kernels:
    """Schedule functions and generate their device code; kernels written by hand are added as they are.

    `wanted` as in `schedule`.
    """
    written = {name: f for name, f in functions.items() if lowbit.is_written(f)}
    mapped = {name: f for name, f in functions.items() if name not in written}
    scheduled, choices = schedule(mapped, arch, wanted)
    sources, found = generate(scheduled, arch, {name for name, f in mapped.items() if sums_floats(f)})
    for name, choice in choices.items():
        if (library := read_choice(choice)) is not None:
            found[name] = by_library(found[name], mapped[name], library)
    texts = lowbit.sources(written)
    found |= {name: lowbit.device_function(name, f) for name, f in written.items()}
    choices |= {name: lowbit.schedule_of(f) for name, f in written.items()}
    return Kernels((texts[0] + sources[0], texts[1] + sources[1]), found, choices)


def generate(
    functions: Mapping[str, tirx.PrimFunc], arch: str, contracted: Collection[str]
) -> tuple[tuple[str, str], dict[str, DeviceFunction]]:
    """Return the device code of scheduled functions, those `contracted` apart, and how they are launched."""
    import tvm
    from tvm import tirx
    from tvm.tirx.build import split_host_device_mods

    target = target_of(arch)
    module = tirx.transform.BindTarget(target)(tvm.IRModule(dict(functions)))
    pipeline, _, finish = tirx.get_default_tir_pipeline(target)
    with tvm.transform.PassContext(config=_LOWERING):
        host, devices = split_host_device_mods(with_copies(pipeline(module)))
    (device,) = [finish()(part) for part in devices.values()] or [tvm.IRModule()]
    found = {
        name: _device_function(f, host[name], device, 0 if name in contracted else 1)
        for name, f in functions.items()
    }
    images = {kernel.name: kernel.image for function in found.values() for kernel in function.kernels}
    sources = [
        _source({g: f for g, f in device.functions.items() if images[g.name_hint] == image}, target)
        for image in (0, 1)
    ]
    return (sources[0], sources[1]), found


def _source(functions: Mapping[object, tirx.PrimFunc], target: tvm.target.Target) -> str:
    import tvm

    if not functions:
        return ""
    built = tvm.get_global_func("target.build.cuda")(tvm.IRModule(dict(functions)), target)
    text = _BYTES_OF_VECTOR.sub(_words, str(built.inspect_source("cuda")))
    # Two blocks of the largest tile per processor: one multiplies while the other writes its results.
    return text.replace("__launch_bounds__(256)", "__launch_bounds__(256, 2)") if "wmma" in text else text


def _words(found: re.Match[str]) -> str:
    """Return a constant vector of bytes, which TVM writes byte by byte, in 32-bit words."""
    values = [int(value) & 0xFF for value in re.findall(r"\(signed char\)(-?\d+)", found[2])]
    words = [
        sum(byte << 8 * n for n, byte in enumerate(values[at : at + 4])) for at in range(0, len(values), 4)
    ]
    return f"make_int{found[1]}({', '.join(f'(int)0x{word:08x}' for word in words)})"


def _device_function(
    scheduled: tirx.PrimFunc, host: tirx.PrimFunc, device: tvm.IRModule, image: Literal[0, 1]
) -> DeviceFunction:
    scratch = {
        buffer.name: Tensor(buffer.name, tuple(int(n) for n in buffer.shape), str(buffer.dtype))
        for buffer in _allocated(scheduled)
    }
    kernels = tuple(_kernel(call, device, image) for call in _launches(host))
    return DeviceFunction(tuple(p.name for p in scheduled.params), kernels, scratch)


def _allocated(function: tirx.PrimFunc) -> list[tirx.Buffer]:
    """Return the buffers in device memory that a function's kernels hand each other."""
    from tvm import s_tir

    body = function.body
    root = body.block if isinstance(body, s_tir.SBlockRealize) else None
    return [b for b in root.alloc_buffers if b.scope() == "global"] if root is not None else []


def _launches(host: tirx.PrimFunc) -> list[tvm.ir.Call]:
    import tvm
    import tvm_ffi

    calls: list[tvm.ir.Call] = []

    def visit(call: tvm.ir.Call) -> None:
        if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
            calls.append(call)

    tvm_ffi.structural_walk(host.body, [(tvm.ir.Call, visit)], order="post")
    return calls


def _kernel(call: tvm.ir.Call, device: tvm.IRModule, image: Literal[0, 1]) -> Kernel:
    name = str(call.args[0].value)
    function = device[name]
    tags = [str(tag) for tag in function.attrs["tirx.kernel_launch_params"]]
    sizes = [int(size) for size in call.args[len(call.args) - len(tags) :]]
    grid, block, shared = _dims(tags, sizes)
    parameters = tuple(parameter.name.removesuffix("_ptr") for parameter in function.params)
    return Kernel(name, image, grid, block, shared, parameters)


def _dims(tags: list[str], sizes: list[int]) -> tuple[Dims, Dims, int]:
    extents, shared = [[1, 1, 1], [1, 1, 1]], 0
    for tag, size in zip(tags, sizes, strict=True):
        base, _, axis = tag.partition(".")
        if base in _AXES:
            extents[_AXES[base]]["xyz".index(axis)] = size
        else:
            shared = size
    grid, block = ((e[0], e[1], e[2]) for e in extents)
    return grid, block, shared


def sums_floats(function: tirx.PrimFunc) -> bool:
    """Tell whether an unscheduled function reduces floats: there contraction saves time, bounds cover it."""
    import tvm_ffi
    from tvm import s_tir

    found = False

    def visit(block: s_tir.SBlock) -> None:
        nonlocal found
        writes = [str(region.source.dtype) for region in block.writes]
        found = found or (block.init is not None and any("float" in kind for kind in writes))

    tvm_ffi.structural_walk(function.body, [(s_tir.SBlock, visit)], order="post")
    return found
