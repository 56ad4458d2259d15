"""What nvcc makes of schedules: instructions, registers, blocks per processor. No figure here is measured."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import model_of
from test_gpu_schedules import integers, quantized

from pared.backends.gpu.kernels import Kernels, build
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.gpu.schedules.base import chip_of
from pared.backends.gpu.schedules.tiles import Tile, clocks, ranked

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
needs_ptxas = pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not on the PATH")

# Registers and shared memory of an SM: CUDA C++ Programming Guide, compute capabilities.
_REGISTERS, _SHARED = 65536, {"sm_80": 163 << 10, "sm_90": 227 << 10}


def _kernels(model: ir.Model, arch: str) -> Kernels:
    return build(calls_of(relax_module(model)).functions, arch)


def _half(kind: str, body: str, x: str, **shapes: tuple[int, ...]) -> ir.Model:
    rng, dtype = np.random.default_rng(0), ir.DataType[kind.upper()].numpy()
    constants = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    rank = ",".join("pqrs"[: x.count(",") + 1])
    return model_of(body, f"{kind}[{x}] x", f"{kind}[{rank}] y", **constants)


def _quantized(layer: str, x: str, *w: int) -> ir.Model:
    rng = np.random.default_rng(0)
    return quantized(layer, x, integers(rng, *w), rng)


_PADS = "pads = [1,1,1,1]"
_VECTORS = r"ld\.global\.(nc\.)?v4"
_COPIES = r"(?s)cp\.async\.cg\.shared\.global [^;]*, 16;.*wait_group [1-9];"
_TENSOR = r"mma\.(sync\.aligned|load)\S*"

# What the PTX of a model's kernels must contain.
_MODELS: dict[str, tuple[Callable[[], ir.Model], list[str]]] = {
    "float16": (
        lambda: _half("float16", f"y = Conv<{_PADS}>(x, w)", "1,64,14,14", w=(64, 64, 3, 3)),
        [_TENSOR + r"f32\.f32|" + _TENSOR + r"f16\.f16", _COPIES],
    ),
    "bfloat16": (
        lambda: _half("bfloat16", "y = MatMul(x, w)", "64,128", w=(128, 64)), [_TENSOR + "bf16", _COPIES]
    ),
    "int8": (
        lambda: _quantized(f"Conv<{_PADS}>", "1,64,14,14", 64, 64, 3, 3),
        [_TENSOR + r"s32\.s8\.s8\.s32", _COPIES],
    ),
    "int8, one row": (
        lambda: _quantized("Gemm", "1,1024", 1024, 256), [r"dp4a\.s32\.s32", _VECTORS, r"shfl\.sync"]
    ),
    "int8, depthwise": (
        lambda: _quantized(f"Conv<{_PADS}, group = 64>", "1,64,14,14", 64, 1, 3, 3),
        [r"ld\.global\.(nc\.)?(u32|v4\.u8|b32)"],
    ),
    "float16, one row": (
        lambda: _half("float16", "y = MatMul(x, w)", "1,1024", w=(1024, 256)), [_VECTORS, r"shfl\.sync"]
    ),
}  # fmt: skip


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "arch"), [*((name, "sm_80") for name in _MODELS), ("int8", "sm_90"), ("float16", "sm_90")]
)
def test_kernels_use_the_instructions_they_are_for(name: str, arch: str) -> None:
    make, wanted = _MODELS[name]
    kernels = _kernels(make(), arch)
    parts = zip(kernels.sources, (True, False), strict=True)
    ptx = "".join(compile_ptx(source, arch, contract=contract) for source, contract in parts if source)
    missing = [pattern for pattern in wanted if not re.search(pattern, ptx)]
    assert not missing


@needs_nvcc
@needs_ptxas
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_no_kernel_spills_and_each_fits_a_processor_twice(arch: str, tmp_path: Path) -> None:
    models = [
        _quantized("Gemm", "512,512", 512, 512),
        _half("float16", "y = MatMul(x, w)", "4096,256", w=(256, 4096)),
    ]
    for model in models:
        kernels = _kernels(model, arch)
        source, contract = next(
            (s, c) for s, c in zip(kernels.sources, (True, False), strict=True) if "wmma" in s
        )
        ptx = tmp_path / "kernels.ptx"
        ptx.write_text(compile_ptx(source, arch, contract=contract))
        command = ["ptxas", "-v", f"-arch={arch}", "-o", str(tmp_path / "kernels.cubin"), str(ptx)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
        assert re.findall(r"(\d+) bytes spill stores", said).count("0") == said.count("spill stores")
        registers = max(map(int, re.findall(r"Used (\d+) registers", said)))
        for function in kernels.functions.values():
            for kernel in function.kernels:
                threads = kernel.block[0] * kernel.block[1] * kernel.block[2]
                assert 2 * threads * registers <= _REGISTERS
                assert 2 * kernel.shared_bytes <= _SHARED[arch]


def test_large_products_get_large_tiles_and_small_ones_reach_many_processors() -> None:
    chip = chip_of("sm_90")
    large, small = (ranked(size, 2, chip)[0] for size in ((1, 4096, 4096, 4096), (1, 49, 512, 2048)))
    assert (large.i, large.j) == (128, 128)
    blocks = -(-49 // small.i) * (512 // small.j)
    assert blocks >= 32


def test_a_tile_costs_at_least_its_products() -> None:
    tile = Tile(128, 128, 32, 2, 4)
    assert clocks(tile, (1, 128, 128, 4096), 2, chip_of("sm_80")) >= 128 * 128 * 4096 / 1024
