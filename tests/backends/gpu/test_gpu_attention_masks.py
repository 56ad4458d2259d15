"""Attention whose scores are masked: the forms exporters write are one kernel, whatever differs is not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import model_of
from gpu_simulated import functions_within_bound

from pared.backends.gpu.emit.attention import use_attention
from pared.backends.reference import evaluate
from pared.compiler.backend import Arrays
from pared.compiler.ir.importer import import_model

MIN = float(np.finfo(np.float32).min)
B, H, L, S, D = 2, 2, 19, 37, 16


def masked(
    body: str, *, shape: str = f"{B},1,{L},{S}", kind: str = "float", more: str = "", **constants: object
) -> ir.Model:
    """Return attention of [B, H, L, D] whose text makes `z` of scores `s`; `c` is a condition of `shape`."""
    inputs = f"{kind}[{B},{H},{L},{D}] q, {kind}[{B},{H},{S},{D}] k, {kind}[{B},{H},{S},{D}] v"
    real = {"float": np.float32, "float16": np.float16}[kind]
    text = f"""
        t = Transpose<perm = [0,1,3,2]>(k)
        n = MatMul(q, t)
        s = Mul(n, factor)
        {body}
        y = MatMul(p, v)
    """
    text = text if "p = " in text else text.replace("y = ", "p = Softmax<axis = -1>(z)\n y = ")
    given = {"factor": np.array(0.25, real)} | {
        name: np.asarray(array, real) if np.asarray(array).dtype == np.float64 else np.asarray(array)
        for name, array in constants.items()
    }
    condition = f", bool[{shape}] c" if "c," in body else ""
    return model_of(text, inputs + condition + more, f"{kind}[{B},{H},{L},{D}] y", **given)  # type: ignore[arg-type]


def inputs_of(model: ir.Model, *, whole_rows: bool, seed: int = 0) -> Arrays:
    """Return random inputs; a third of a condition is false, with `whole_rows` a row as a whole."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for value in model.graph.inputs:
        sizes = value.shape.numpy()
        assert value.dtype is not None
        if value.dtype == ir.DataType.BOOL:
            kept = rng.uniform(size=sizes) < 0.67
            kept[..., :1] = True
            if whole_rows:
                kept[..., 3, :] = False
            found[value.name] = kept
        else:
            found[value.name] = rng.normal(size=sizes).astype(value.dtype.numpy())
    return found


def is_fused(model: ir.Model) -> bool:
    """Say whether attention is found in a model."""
    return use_attention(model.clone()) == 1


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("fill", [-np.inf, -1e4, 0.5])
def test_a_choice_between_scores_and_a_number_is_in_the_kernel(kind: str, fill: float) -> None:
    model = masked("z = Where(c, s, f)", kind=kind, f=fill)
    assert functions_within_bound(model, inputs_of(model, whole_rows=False)) == ["attention"]


@pytest.mark.parametrize("shape", [f"{L},{S}", f"{B},1,1,{S}", f"1,{H},{L},1", f"{B},{H},{L},{S}", "1"])
def test_a_condition_that_broadcasts_is_read_where_it_lies(shape: str) -> None:
    model = masked("z = Where(c, s, f)", shape=shape, f=-9.0)
    x = inputs_of(model, whole_rows=False, seed=1)
    x["c"] = np.random.default_rng(2).uniform(size=x["c"].shape) < 0.5
    assert functions_within_bound(model, x) == ["attention"]


def test_a_choice_may_keep_scores_where_the_condition_is_false() -> None:
    model = masked("z = Where(c, f, s)", f=-np.inf)
    x = inputs_of(model, whole_rows=False)
    x["c"] = ~x["c"]
    assert functions_within_bound(model, x) == ["attention"]


def test_a_row_of_minus_infinity_is_nan_as_in_the_reference() -> None:
    model = masked("z = Where(c, s, f)", f=-np.inf)
    x = inputs_of(model, whole_rows=True)
    assert functions_within_bound(model, x) == ["attention"]
    assert np.isnan(evaluate(model, x)["y"][:, :, 3]).all()


@pytest.mark.parametrize(("kind", "fill"), [("float", MIN), ("float16", -65504.0), ("float", -1e30)])
def test_a_row_of_the_smallest_number_weighs_all_values_alike(kind: str, fill: float) -> None:
    model = masked("z = Where(c, s, f)", kind=kind, f=fill)
    x = inputs_of(model, whole_rows=True)
    assert functions_within_bound(model, x) == ["attention"]
    mean = x["v"].astype(np.float64).mean(axis=2)
    assert np.allclose(evaluate(model, x)["y"][:, :, 3], mean, atol=2e-3)


def test_a_row_under_a_mask_of_the_smallest_number_weighs_all_values_alike() -> None:
    model = masked("z = Add(s, m)", more=f", float[{B},1,{L},{S}] m")
    x = inputs_of(model, whole_rows=False)
    x["m"] = np.where(
        np.random.default_rng(3).uniform(size=x["m"].shape) < 0.5, np.float32(MIN), np.float32(0)
    )
    x["m"][:, :, 3] = MIN
    assert functions_within_bound(model, x) == ["attention"]
    assert np.allclose(evaluate(model, x)["y"][:, :, 3], x["v"].mean(axis=2), atol=1e-6)


def test_a_mask_is_added_before_or_behind_the_choice() -> None:
    for body in ("w = Where(c, s, f)\n z = Add(w, m)", "w = Add(m, s)\n z = Where(c, w, f)"):
        model = masked(body, f=-2.0, more=f", float[{L},{S}] m")
        assert functions_within_bound(model, inputs_of(model, whole_rows=True)) == ["attention"]


def test_a_causal_mask_that_the_graph_computes_is_a_condition() -> None:
    model = masked(
        """o = ConstantOfShape<value = int64[1] {1}>(sizes)
           l = Trilu<upper = 0>(o)
           c = Cast<to = 9>(l)
           z = Where(c, s, f)""".replace("c = ", "tri = ").replace("(c, s", "(tri, s"),
        sizes=np.array([L, S]), f=-np.inf,
    )  # fmt: skip
    x = inputs_of(model, whole_rows=False)
    assert functions_within_bound(model, x) == ["attention"]
    ahead = {**x, "k": x["k"].copy(), "v": x["v"].copy()}
    ahead["k"][:, :, L:], ahead["v"][:, :, L:] = 7, 7
    assert np.array_equal(evaluate(model, x)["y"], evaluate(model, ahead)["y"])


def test_a_number_may_be_written_for_every_place() -> None:
    model = masked("z = Where(c, s, f)", f=np.full((1, 1, L, S), -8.0))
    assert functions_within_bound(model, inputs_of(model, whole_rows=False)) == ["attention"]


@pytest.mark.parametrize("whole_rows", [False, True])
def test_weights_that_are_no_numbers_may_become_zeros(whole_rows: bool) -> None:
    body = """
        w = Where(c, zero, low)
        z = Add(s, w)
        r = Softmax<axis = -1>(z)
        i = IsNaN(r)
        p = Where(i, zero, r)
    """
    model = masked(body, zero=0.0, low=-np.inf)
    x = inputs_of(model, whole_rows=whole_rows)
    if whole_rows:
        x["q"][0, 1, 5, 2] = np.nan
    assert "attention" in functions_within_bound(model, x)
    assert np.isfinite(evaluate(model, x)["y"]).all()


def test_factors_of_queries_and_keys_are_the_scores() -> None:
    model = model_of(
        """a = Mul(q, r)
           t = Transpose<perm = [0,1,3,2]>(k)
           b = Div(t, r4)
           s = MatMul(a, b)
           z = Where(c, s, f)
           p = Softmax<axis = -1>(z)
           y = MatMul(p, v)""",
        f"float16[2,2,19,16] q, float16[2,2,{S},16] k, float16[2,2,{S},16] v, bool[19,{S}] c",
        "float16[2,2,19,16] y", r=np.float16(0.5), r4=np.float16(4), f=np.float16(-np.inf),
    )  # fmt: skip
    assert functions_within_bound(model, inputs_of(model, whole_rows=False)) == ["attention"]


def test_softmax_in_float32_between_halves_is_in_the_kernel() -> None:
    body = "w = Cast<to = 1>(s)\n z = Where(c, w, f)\n r = Softmax<axis = -1>(z)\n p = Cast<to = 10>(r)"
    model = masked(body, kind="float16", f=np.float32(MIN))
    assert functions_within_bound(model, inputs_of(model, whole_rows=True)) == ["attention"]


UNLIKE = {
    "a number per column": masked("z = Where(c, s, f)", f=-np.arange(1.0, S + 1)),
    "NaN": masked("z = Where(c, s, f)", f=np.nan),
    "infinity": masked("z = Where(c, s, f)", f=np.inf),
    "a number that is an input": masked("z = Where(c, s, f)", more=", float f"),
    "two choices": masked("w = Where(c, s, f)\n z = Where(c, w, f)", f=-1.0),
    "two masks": masked("w = Add(s, m)\n z = Add(w, m)", more=f", float[{L},{S}] m"),
    "a choice between scores and scores": masked("z = Where(c, s, n)"),
    "ones for NaN": masked(
        "z = Add(s, f)\n r = Softmax<axis = -1>(z)\n i = IsNaN(r)\n p = Where(i, one, r)", f=0.0, one=1.0
    ),
    "zeros but for NaN": masked(
        "z = Add(s, f)\n r = Softmax<axis = -1>(z)\n i = IsNaN(r)\n p = Where(i, r, o)", f=0.0, o=0.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_what_differs_stays_single_operators(name: str) -> None:
    assert not is_fused(UNLIKE[name])


_CHOSEN = """t = Transpose<perm = [0,1,3,2]>(k)
             s = MatMul(q, t)
             z = Where(c, s, f)
             p = Softmax<axis = -1>(z)
             y = MatMul(p, v)"""


def test_a_choice_that_makes_more_scores_is_no_mask() -> None:
    model = model_of(
        _CHOSEN,
        "float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v, bool[3,1,8,8] c", "float[3,2,8,16] y",
        f=np.float32(-np.inf),
    )  # fmt: skip
    assert not is_fused(model)


def test_chosen_scores_that_somebody_else_reads_stay() -> None:
    model = model_of(
        _CHOSEN,
        "float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v, bool[8,8] c",
        "float[1,2,8,16] y, float[1,2,8,8] z", f=np.float32(-1),
    )  # fmt: skip
    assert not is_fused(model)


def test_weights_that_somebody_else_reads_stay() -> None:
    model = model_of(
        """t = Transpose<perm = [0,1,3,2]>(k)
           s = MatMul(q, t)
           r = Softmax<axis = -1>(s)
           i = IsNaN(r)
           p = Where(i, zero, r)
           y = MatMul(p, v)
           n = Neg(r)""",
        "float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v", "float[1,2,8,16] y, float[1,2,8,8] n",
        zero=np.float32(0),
    )  # fmt: skip
    assert not is_fused(model)


def test_scores_of_halves_that_weigh_values_of_float32_stay() -> None:
    model = model_of(
        """t = Transpose<perm = [0,1,3,2]>(k)
           s = MatMul(q, t)
           w = Cast<to = 1>(s)
           p = Softmax<axis = -1>(w)
           y = MatMul(p, v)""",
        "float16[1,2,8,16] q, float16[1,2,8,16] k, float[1,2,8,16] v", "float[1,2,8,16] y",
    )  # fmt: skip
    assert not is_fused(model)


@pytest.mark.parametrize("seed", range(6))
def test_any_form_in_any_size_is_one_kernel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, heads, rows, keys = (int(rng.integers(1, most)) for most in (4, 4, 50, 90))
    depth, width = 16 * int(rng.integers(1, 4)), 8 * int(rng.integers(1, 8))
    kind, real = (("float", np.float32), ("float16", np.float16))[seed % 2]
    full = (batch, heads, rows, keys)
    condition, mask = (
        ",".join(str(size if rng.uniform() < 0.6 else 1) for size in full[int(rng.integers(0, 4)) :])
        for _ in "cm"
    )
    order = "Where(c, s, f)" if rng.uniform() < 0.5 else "Where(c, f, s)"
    chain = (
        f"z = {order}",
        f"w = {order}\n z = Add(m, w)",
        "s1 = Add(s, m)\n z = " + order.replace("s", "s1"),
    )
    model = model_of(
        f"""t = Transpose<perm = [0,1,3,2]>(k)
            n = MatMul(q, t)
            s = Div(n, factor)
            {chain[int(rng.integers(0, 3))]}
            p = Softmax<axis = -1>(z)
            y = MatMul(p, v)""",
        f"{kind}[{batch},{heads},{rows},{depth}] q, {kind}[{batch},{heads},{keys},{depth}] k, "
        f"{kind}[{batch},{heads},{keys},{width}] v, bool[{condition}] c, {kind}[{mask}] m",
        f"{kind}[{batch},{heads},{rows},{width}] y", factor=real(np.sqrt(depth)),
        f=real(rng.choice([-np.inf, -1e4, -1.0, 3.0])),
    )  # fmt: skip
    x = inputs_of(model, whole_rows=False, seed=seed)
    x["c"] = rng.uniform(size=x["c"].shape) < 0.6
    assert functions_within_bound(model, x) == ["attention"]


@pytest.mark.parametrize("causal", [0, 1])
def test_the_operator_attention_takes_truth_values(causal: int) -> None:
    inputs = f"float[1,2,{L},16] q, float[1,2,{S},16] k, float[1,2,{S},16] v, bool[{L},{S}] c"
    body = f"y = Attention<is_causal = {causal}>(q, k, v, c)"
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => (float[1,2,{L},16] y) {{ {body} }}'
    model = import_model(onnx.parser.parse_model(text)).model
    assert "attention" in functions_within_bound(model, inputs_of(model, whole_rows=False))
