"""Attention as one kernel: found in the graph, within the bound, and left alone where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import compiled, emulated, model_of
from gpu_simulated import functions_within_bound, needs_nvcc

from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.backend import Arrays
from pared.compiler.ir.importer import import_model


@dataclass(frozen=True)
class Case:
    """Batch, heads, rows, keys, columns of a head; how it is written."""

    b: int
    h: int
    rows: int
    keys: int
    d: int
    data: str = "float16"
    form: str = "heads in rows"
    mask: tuple[int, ...] = ()


CASES = [
    Case(1, 2, 40, 40, 32, mask=(1, 1, 1, 40)), Case(2, 1, 17, 70, 16, mask=(2, 1, 17, 70)),
    Case(1, 2, 64, 130, 64), Case(1, 3, 20, 33, 32, "float", mask=(20, 33)), Case(2, 2, 9, 24, 64, "float"),
    Case(3, 1, 5, 12, 16, form="heads in batch", mask=(3, 5, 12)), Case(1, 2, 16, 16, 128, form="plain"),
]  # fmt: skip


def attention(case: Case) -> ir.Model:
    """Return attention; the q, k and v of `heads in rows` are [B, L, H, D], turned as exporters do."""
    kind = np.float16 if case.data == "float16" else np.float32
    b, h, d, rows, keys = case.b, case.h, case.d, case.rows, case.keys
    turned = case.form == "heads in rows"
    lead = f"{b}" if case.form == "heads in batch" else f"{b},{h}"

    def shape(length: int) -> str:
        return f"{case.data}[{b},{length},{h},{d}]" if turned else f"{case.data}[{lead},{length},{d}]"

    inputs = [f"{shape(rows)} q", f"{shape(keys)} k", f"{shape(keys)} v"]
    inputs += [f"{case.data}[{','.join(map(str, case.mask))}] mask"] if case.mask else []
    perm = [0, 2, 1] if case.form == "heads in batch" else [0, 1, 3, 2]
    body = f"""
        {"q1 = Transpose<perm = [0,2,1,3]>(q)" if turned else "q1 = Identity(q)"}
        {"k1 = Transpose<perm = [0,2,3,1]>(k)" if turned else f"k1 = Transpose<perm = {perm}>(k)"}
        {"v1 = Transpose<perm = [0,2,1,3]>(v)" if turned else "v1 = Identity(v)"}
        s1 = MatMul(q1, k1)
        s2 = Div(s1, root)
        {"s3 = Add(s2, mask)" if case.mask else "s3 = Identity(s2)"}
        p = Softmax<axis = -1>(s3)
        o = MatMul(p, v1)
        {"y = Transpose<perm = [0,2,1,3]>(o)" if turned else "y = Identity(o)"}
    """
    body = body.replace("s3 = Identity(s2)", "").replace(
        "Softmax<axis = -1>(s3)", f"Softmax<axis = -1>({'s3' if case.mask else 's2'})"
    )
    if not turned:
        body = (
            body.replace("q1 = Identity(q)", "")
            .replace("v1 = Identity(v)", "")
            .replace("q1,", "q,")
            .replace("v1)", "v)")
        )
        body = body.replace("y = Identity(o)", "").replace("o = MatMul", "y = MatMul")
    return model_of(body, ", ".join(inputs), f"{shape(rows)} y", root=np.array(np.sqrt(d), kind))


def samples(case: Case, seed: int) -> Arrays:
    """Return inputs; a mask forbids a third of the places."""
    rng = np.random.default_rng(seed)
    kind = np.float16 if case.data == "float16" else np.float32
    sizes = {"q": case.rows, "k": case.keys, "v": case.keys}
    lead = (case.b,) if case.form == "heads in batch" else (case.b, case.h)
    found = {
        name: (
            1.5
            * rng.normal(
                size=(case.b, n, case.h, case.d) if case.form == "heads in rows" else (*lead, n, case.d)
            )
        ).astype(kind)
        for name, n in sizes.items()
    }
    if case.mask:
        found["mask"] = np.where(rng.uniform(size=case.mask) < 0.33, kind(-1e4), kind(0))
    return found


def kernels_of(model: ir.Model) -> list[str]:
    """Return the names of a model's kernels."""
    return list(compiled(model)[2].functions)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_one_kernel_within_the_bound(case: Case) -> None:
    assert functions_within_bound(attention(case), samples(case, case.d)) == ["attention"]


def test_a_head_of_odd_width_stays_single_operators() -> None:
    case = Case(1, 2, 8, 8, 20)
    model, x = attention(case), samples(case, 0)
    assert "attention" not in kernels_of(model)
    bound = derive_bound(model, [x], seed=0)["y"]
    assert bound.accepts(emulated(model).run(x)["y"], evaluate(model, x)["y"])


def test_scores_that_somebody_else_reads_stay() -> None:
    model = model_of(
        "s = MatMul(q, k)\n p = Softmax<axis = -1>(s)\n y = MatMul(p, v)",
        "float[1,2,8,16] q, float[1,2,16,8] k, float[1,2,8,16] v", "float[1,2,8,16] y, float[1,2,8,8] p",
    )  # fmt: skip
    assert "attention" not in kernels_of(model)


def test_softmax_over_another_axis_is_no_attention() -> None:
    model = model_of(
        "t = Transpose<perm = [0,1,3,2]>(k)\n s = MatMul(q, t)\n p = Softmax<axis = 2>(s)\n y = MatMul(p, v)",
        "float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v", "float[1,2,8,16] y",
    )  # fmt: skip
    assert "attention" not in kernels_of(model)


@pytest.mark.parametrize(
    ("inputs", "attributes", "fused"),
    [
        ("float16[1,2,10,16] q, float16[1,2,12,16] k, float16[1,2,12,16] v", "scale = 0.3", True),
        (
            "float[2,10,32] q, float[2,10,32] k, float[2,10,32] v",
            "q_num_heads = 2, kv_num_heads = 2, is_causal = 1",
            True,
        ),
        ("float[1,2,6,12] q, float[1,2,6,12] k, float[1,2,6,12] v", "is_causal = 1", False),
    ],
)
def test_the_operator_attention_is_one_kernel_or_single_ones(
    inputs: str, attributes: str, fused: bool
) -> None:
    output = inputs.split(", ")[0].replace(" q", " y")
    body = f"y = Attention<{attributes}>(q, k, v)"
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({output}) {{ {body} }}'
    model = import_model(onnx.parser.parse_model(text)).model
    assert ("attention" in kernels_of(model)) == fused
    rng = np.random.default_rng(0)
    x = {}
    for value in model.graph.inputs:
        assert value.dtype is not None
        x[str(value.name)] = rng.normal(size=value.shape.numpy()).astype(value.dtype.numpy())
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    assert bound.accepts(emulated(model).run(x)["y"], want)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_scores_and_values_go_through_tensor_cores(arch: str) -> None:
    ptx = compile_ptx(compiled(attention(CASES[2]))[2].sources[0], arch, contract=True)
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in ptx
    assert "ldmatrix.sync.aligned.m8n8.x2.trans" in ptx
    assert "shfl.sync.bfly" in ptx
