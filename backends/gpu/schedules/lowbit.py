"""Kernels written by hand: which functions have one, their text and how they are launched.

An emitter marks a function with `mark(kind, sizes)`. Its loops stay: they say what the kernel computes, and
the emulated device runs them. The kernel takes the function's parameters in their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..program import DeviceFunction, Kernel
from . import lowbit_attention, lowbit_binary, lowbit_blocks, lowbit_product, lowbit_sparse
from .lowbit_written import Written

if TYPE_CHECKING:
    from tvm import tirx

_MARK = "pared.written"
# TVM's pattern of functions that nothing is fused with.
_OPAQUE = 8


def mark(kind: str, sizes: object) -> dict[str, str | int]:
    """Return the attributes of a function with a kernel of its own; `sizes` is the kind's dataclass."""
    return {_MARK: json.dumps({"kind": kind, **asdict(sizes)}), "op_pattern": _OPAQUE}  # type: ignore[call-overload]


def is_written(function: tirx.PrimFunc) -> bool:
    """Say whether a function has a kernel written by hand."""
    return function.attrs is not None and _MARK in function.attrs


def sources(functions: Mapping[str, tirx.PrimFunc]) -> tuple[str, str]:
    """Return the text of all kernels whose sums may be contracted, and of those whose may not."""
    found = [(name, _write(f)) for name, f in functions.items()]
    return source_of([pair for pair in found if not pair[1].exact]), source_of(
        [p for p in found if p[1].exact]
    )


def source_of(kernels: Sequence[tuple[str, Written]]) -> str:
    """Return the text of functions' kernels, by their names, with all that they stand on; "" for none."""
    if not kernels:
        return ""
    templates = dict.fromkeys(["machine", *(written.template for _, written in kernels)])
    return "".join([*map(_text, templates), *(_kernel_text(name, written) for name, written in kernels)])


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


_Writer: TypeAlias = Callable[[Mapping[str, object]], Written]
_WRITERS: Mapping[str, _Writer] = {
    "product": lowbit_product.write,
    "attention": lowbit_attention.write,
    "blocks": lowbit_blocks.write,
    "sparse": lowbit_sparse.write,
    "binary-pack": lowbit_binary.write_pack,
    "binary-product": lowbit_binary.write_product,
}
