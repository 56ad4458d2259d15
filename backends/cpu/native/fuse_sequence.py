"""Merges layers of rank-N tensors: chains into one, functions and sums into the product before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from . import layers as L
from . import layers_sequence as S
from .kernels.after_f32 import FUNCTIONS, After
from .kernels.elementwise_f32 import Op

MOST_VALUES = 48

Tree: TypeAlias = "tuple[object, ...]"
_X: Tree = ("x",)


def joined_chains(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return two chains over the same elements as one."""
    if not isinstance(before, S.Chain) or not isinstance(after, S.Chain) or before.output.quant is not None:
        return None
    if before.output.shape != after.output.shape or before.image != after.image:
        return None
    inputs = list(before.inputs)
    inputs += [x for x in after.inputs if x.name != before.output.name and x not in inputs]
    constants = (*before.constants, *after.constants)
    if len(inputs) + len(constants) + len(before.ops) + len(after.ops) > MOST_VALUES:
        return None
    first, behind = len(inputs), len(inputs) + len(constants)
    one = _numbers(before, [inputs.index(x) for x in before.inputs], first, behind)
    made = one[-1] if before.ops else one[0]
    places = [made if x.name == before.output.name else inputs.index(x) for x in after.inputs]
    other = _numbers(after, places, first + len(before.constants), behind + len(before.ops))
    ops = [
        replace(op, args=tuple(m[a] for a in op.args))
        for m, c in ((one, before), (other, after))
        for op in c.ops
    ]
    if not after.ops and made != behind + len(before.ops) - 1:
        return None
    covers = before.covers + after.covers
    return replace(after, inputs=tuple(inputs), constants=constants, ops=tuple(ops), covers=covers)


def _numbers(chain: S.Chain, inputs: Sequence[int], constants: int, ops: int) -> list[int]:
    """Return the new number of every value of a chain."""
    return [
        *inputs,
        *(constants + i for i in range(len(chain.constants))),
        *(ops + i for i in range(len(chain.ops))),
    ]


def with_function(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a product with the function of its result as epilogue."""
    if (
        not _open(before)
        or not isinstance(after, S.Chain)
        or (isinstance(before, S.Dense) and after.output.quant)
    ):
        return None
    if len(after.inputs) != 1 or after.constants:
        return None
    assert isinstance(before, S.Dense | S.IntProduct), "these are open"
    epilogue = function_of(after.ops)
    if epilogue is None or before.output.shape != after.output.shape:
        return None
    return replace(before, output=after.output, covers=before.covers + after.covers, after=epilogue)


def with_residual(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a product with another tensor added."""
    if not _open(before):
        return None
    assert isinstance(before, S.Dense | S.IntProduct), "these are open"
    others = [x for x in after.inputs if x.name != before.output.name]
    sums = isinstance(after, S.Chain) and after.ops == (Op("add", (0, 1)),) and not after.constants
    if not sums or len(others) != 1 or {x.shape for x in after.inputs} != {after.output.shape}:
        return None
    if others[0].quant is not None or (isinstance(before, S.Dense) and after.output.quant is not None):
        return None
    inputs, covers = (*before.inputs, others[0]), before.covers + after.covers
    if isinstance(before, S.IntProduct):
        return replace(before, inputs=inputs, output=after.output, covers=covers, residual=True)
    return replace(before, inputs=inputs, output=after.output, covers=covers)


def _open(layer: L.Layer) -> bool:
    """Say whether a product's real result has nothing done to it yet."""
    if isinstance(layer, S.Dense):
        return layer.after == After() and len(layer.inputs) == 1
    if not isinstance(layer, S.IntProduct) or layer.whole is not None or layer.output.quant is not None:
        return False
    return layer.after == After() and not layer.residual and not layer.perm


def with_scale(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a quantized product with the factor behind it; an addend or residual keeps them apart."""
    if not isinstance(before, S.IntProduct) or not isinstance(after, S.Chain) or not _open(before):
        return None
    if before.addend is not None or before.output.shape != after.output.shape:
        return None
    found = _scaled_and_added(after, before.output.name)
    if found is None or found[1] or found[2] is not None:
        return None
    factor = np.asarray(before.factor * np.float32(found[0]), np.float32)
    return replace(before, output=after.output, covers=before.covers + after.covers, factor=factor)


def with_bias(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a batched product with its scale, and with a mask that is added."""
    if not isinstance(before, S.MatMul) or not isinstance(after, S.Chain) or before.output.quant is not None:
        return None
    if (
        len(before.inputs) > 2
        or before.added is not None
        or before.perm
        or before.output.shape != after.output.shape
    ):
        return None
    found = _scaled_and_added(after, before.output.name)
    if found is None:
        return None
    alpha, others, added = found
    return replace(
        before, inputs=(*before.inputs, *others), output=after.output, covers=before.covers + after.covers,
        alpha=float(np.float32(before.alpha) * np.float32(alpha)), added=added,
    )  # fmt: skip


def with_transpose(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a batched product that writes its result transposed, its columns still last."""
    if not isinstance(before, S.MatMul | S.IntProduct) or not isinstance(after, L.Transpose) or before.perm:
        return None
    if after.perm[-1] != len(after.perm) - 1 or (isinstance(before, S.IntProduct) and before.residual):
        return None
    return replace(before, output=after.output, covers=before.covers + after.covers, perm=after.perm)


def _scaled_and_added(
    chain: S.Chain, name: str
) -> tuple[float, tuple[L.Tensor, ...], L.Floats | None] | None:
    """Return factor and addend of `x * factor + addend`, None for anything else."""
    values: list[Tree] = [(_X if x.name == name else ("in", i)) for i, x in enumerate(chain.inputs)]
    values += [("array", i) for i in range(len(chain.constants))]
    made = tree(chain.ops, values)
    terms = list(made[1:]) if made[0] == "sum" else [made]
    scaled = [term for term in terms if _factor(term) is not None]
    rest = [term for term in terms if _factor(term) is None]
    if len(scaled) != 1 or len(rest) > 1:
        return None
    factor = _factor(scaled[0])
    assert factor is not None, "chosen for it"
    others = tuple(x for x in chain.inputs if x.name != name)
    if not rest:
        return (factor, (), None) if not others and not chain.constants else None
    match rest[0]:
        case ("in", int()) if len(others) == 1 and not chain.constants and others[0].quant is None:
            return factor, others, None
        case ("array", int(i)) if not others and len(chain.constants) == 1:
            return factor, (), chain.constants[i]
    return None


def _factor(term: object) -> float | None:
    """Return c of `c * x`."""
    if term == _X:
        return 1.0
    match term:
        case ("product", float(c), ("x",)):
            return c
    return None


# --- what a chain computes --------------------------------------------------------------------------------


def function_of(ops: Sequence[Op]) -> After | None:
    """Return the epilogue that a chain of one input computes, None when it is none."""
    if len(ops) == 1 and ops[0].args == (0,):
        op = ops[0]
        if op.name in FUNCTIONS:
            return After(function=op.name, alpha=op.alpha, beta=op.beta)
        if op.name == "relu":
            return After(low=0.0)
        if op.name == "clip":
            ends = [None if np.isinf(end) else end for end in (op.alpha, op.beta)]
            return After(low=ends[0], high=ends[1])
    found = tree(ops, [_X])
    for name, form in _FORMS.items():
        if _alike(found, form):
            return After(function=name)
    return None


def tree(ops: Sequence[Op], values: Sequence[Tree]) -> Tree:
    """Return the last value of a chain as an expression in normal form: flat sums and products, sorted."""
    known = list(values)
    for op in ops:
        known.append(_simplified(op, [known[a] for a in op.args]))
    return known[-1]


def _simplified(op: Op, args: Sequence[Tree]) -> Tree:
    if op.name == "const":
        return ("product", op.alpha)
    if op.name == "neg":
        return _product([("product", -1.0), args[0]])
    if op.name == "div":
        match args[1]:
            case ("product", float(c)) if c:
                return _product([args[0], ("product", 1 / c)])
    if op.name == "mul":
        return _product(args)
    if op.name in ("add", "sub"):
        second = args[1] if op.name == "add" else _product([("product", -1.0), args[1]])
        return _sum([args[0], second])
    return (op.name, op.alpha, op.beta, *args)


def _product(args: Sequence[Tree]) -> Tree:
    number, factors = 1.0, list[object]()
    for arg in args:
        if arg[0] == "product":
            assert isinstance(arg[1], float), "products begin with their number"
            number *= arg[1]
            factors += arg[2:]
        else:
            factors.append(arg)
    if number == 1.0 and len(factors) == 1 and isinstance(factors[0], tuple):
        return factors[0]
    return ("product", number, *sorted(factors, key=repr))


def _sum(args: Sequence[Tree]) -> Tree:
    terms: list[object] = []
    for arg in args:
        terms += arg[1:] if arg[0] == "sum" else [arg]
    return ("sum", *sorted(terms, key=repr))


def _alike(one: object, other: object) -> bool:
    """Compare expressions, numbers to seven digits: models write constants with different precision."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=3e-7, atol=0))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def _gelu_forms() -> dict[str, Tree]:
    erf = ("erf", 0.0, 0.0, _product([_X, ("product", 0.5**0.5)]))
    inner = _sum([_X, _product([("product", 0.044715), _X, _X, _X])])
    tanh = ("tanh", 0.0, 0.0, _product([("product", (2 / np.pi) ** 0.5), inner]))
    one: Tree = ("product", 1.0)
    return {
        "gelu": _product([("product", 0.5), _X, _sum([one, erf])]),
        "gelu-tanh": _product([("product", 0.5), _X, _sum([one, tanh])]),
        "erf-gate": _product([_X, _sum([one, erf])]),
        "tanh-gate": _product([_X, _sum([one, tanh])]),
        "silu": _product([_X, ("sigmoid", 0.0, 0.0, _X)]),
    }


_FORMS = _gelu_forms()

SEQUENCE_MERGES = (joined_chains, with_scale, with_function, with_residual, with_bias, with_transpose)
