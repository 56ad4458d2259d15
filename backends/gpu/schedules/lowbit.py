"""Kernels written by hand: which functions have one, their text and how they are launched.

An emitter marks a function with `mark(kind, sizes)`. Its loops stay: they say what the kernel computes, and
the emulated device runs them. The kernel takes the function's parameters in their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..program import DeviceFunction, Dims, Kernel
from . import lowbit_product

if TYPE_CHECKING:
    from tvm import tirx

_MARK = "pared.written"
# TVM's pattern of functions that nothing is fused with.
_OPAQUE = 8

_CPP = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}


@dataclass(frozen=True)
class Written:
    """A kernel's text and its launch.

    Attributes:
        template: file in `cuda/` with what kernels of the kind share.
        types: of the parameters, in C++.
        call: the statement in the kernel's body; `{0}` to `{n}` are its parameters.
        grid, block: launch sizes.
        exact: products and sums must round once each.
        schedule: name in the artifact's report.
    """

    template: str
    types: Sequence[str]
    call: str
    grid: Dims
    block: Dims
    exact: bool
    schedule: str


def mark(kind: str, sizes: object) -> dict[str, str | int]:
    """Return the attributes of a function with a kernel of its own; `sizes` is the kind's dataclass."""
    return {_MARK: json.dumps({"kind": kind, **asdict(sizes)}), "op_pattern": _OPAQUE}  # type: ignore[call-overload]


def is_written(function: tirx.PrimFunc) -> bool:
    """Say whether a function has a kernel written by hand."""
    return function.attrs is not None and _MARK in function.attrs


def sources(functions: Mapping[str, tirx.PrimFunc]) -> tuple[str, str]:
    """Return the text of all kernels whose sums may be contracted, and of those whose may not."""
    texts = ["", ""]
    for image in (0, 1):
        found = [(name, _write(f)) for name, f in functions.items()]
        chosen = [(name, w) for name, w in found if w.exact == bool(image)]
        if chosen:
            templates = dict.fromkeys(w.template for _, w in chosen)
            texts[image] = "".join(
                [_text("machine"), *map(_text, templates), *(_kernel_text(name, w) for name, w in chosen)]
            )
    return texts[0], texts[1]


def device_function(name: str, function: tirx.PrimFunc) -> DeviceFunction:
    """Return how a function with a kernel of its own is launched."""
    written, parameters = _write(function), tuple(p.name for p in function.params)
    image: Literal[0, 1] = 1 if written.exact else 0
    kernel = Kernel(f"{name}_kernel", image, written.grid, written.block, 0, parameters)
    return DeviceFunction(parameters, (kernel,), {})


def _text(name: str) -> str:
    return (files(__package__) / "cuda" / f"{name}.cuh").read_text(encoding="utf-8")


def schedule_of(function: tirx.PrimFunc) -> str:
    """Return the name of a function's kernel for the artifact's report."""
    return _write(function).schedule


def _kernel_text(name: str, written: Written) -> str:
    names = [f"p{index}" for index in range(len(written.types))]
    parameters = ", ".join(f"{kind} {own}" for kind, own in zip(written.types, names, strict=True))
    threads = written.block[0] * written.block[1] * written.block[2]
    return (
        f'extern "C" __global__ void __launch_bounds__({threads}) {name}_kernel({parameters}) {{\n'
        f"  {written.call.format(*names)}\n}}\n"
    )


def _write(function: tirx.PrimFunc) -> Written:
    sizes = json.loads(str(function.attrs[_MARK]))
    return _WRITERS[sizes.pop("kind")](sizes)


def _product(sizes: Mapping[str, object]) -> Written:
    shape = lowbit_product.Shape(**sizes)  # type: ignore[arg-type]
    shares = lowbit_product.shares_of(shape)
    data, scale = _CPP[shape.data], _CPP[shape.scale]
    numbers = (
        shape.bits, shape.m, shape.n, shape.k, shape.block, shape.zero, shares.tiles, shares.r, shares.wk,
        shares.wr, shares.depth, shape.activation, str(shape.bias).lower(),
    )  # fmt: skip
    types = [f"const {data}* __restrict__", "const unsigned* __restrict__", f"const {scale}* __restrict__"]
    zero, bias = shape.zero < 0, shape.bias
    types += ["const unsigned char* __restrict__"] * zero + ["const float* __restrict__"] * bias
    places = [3 if zero else None, (4 if zero else 3) if bias else None, 3 + zero + bias]
    optional = ["nullptr" if place is None else f"{{{place}}}" for place in places]
    call = (
        f"pared::product<{data}, {scale}, {', '.join(map(str, numbers))}>({{0}}, "
        f"reinterpret_cast<const uint4*>({{1}}), {{2}}, {', '.join(optional)});"
    )
    grid = lowbit_product.grid_of(shape, shares)
    name = f"w{shape.bits}-product-{shares.tiles}x{shares.r}-k{shares.wk}-n{shares.wr}"
    block = 32 * shares.wk * shares.wr
    return Written("product", [*types, f"{data}* __restrict__"], call, (*grid, 1), (block, 1, 1), False, name)


_Writer: TypeAlias = Callable[[Mapping[str, object]], Written]
_WRITERS: Mapping[str, _Writer] = {"product": _product}
