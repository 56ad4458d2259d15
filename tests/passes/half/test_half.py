"""Half floats: what becomes one, what stays in float32 and why, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from pared.backends.reference import evaluate
from pared.compiler.data import open_samples
from pared.compiler.errors import DataError, ModelError, PipelineError
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.walk import all_nodes
from pared.compiler.manager import Manager, PassRecord
from pared.compiler.pass_api import Context
from pared.passes.half.half import Half

RNG = np.random.default_rng(0)
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def graph(body: str, inputs: str, outputs: str, **constants: np.ndarray) -> ir.Model:
    """An imported model of ONNX text; constants are initializers."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = ir.from_onnx_text(text)
    for name, array in constants.items():
        tensor = ir.tensor(np.asarray(array), name=name)
        value = next((v for v in model.graph.inputs if v.name == name), None)
        assert value is not None, f"declare {name} as an input"
        model.graph.inputs.remove(value)
        value.const_value = tensor
        model.graph.register_initializer(value)
    return import_model(ir.to_proto(model)).model


def halved(model: ir.Model, half: Half | None = None, **context: object) -> tuple[ir.Model, PassRecord]:
    """The converted model, checked in full, and the pass's record."""
    result = Manager(verify_each=True).run(model, [half or Half()], Context(**context))  # type: ignore[arg-type]
    return result.model, result.records[0]


def conv_net() -> ir.Model:
    return graph(
        """c = Conv<pads: ints = [1,1,1,1]>(x, w, b) r = Relu(c)
           m = MaxPool<kernel_shape: ints = [2,2]>(r) f = Flatten(m) g = Gemm(f, v) y = Softmax(g)""",
        "float[1,3,4,4] x, float[5,3,3,3] w, float[5] b, float[45,4] v",
        "float[n,m] y",
        w=RNG.normal(size=(5, 3, 3, 3)).astype(np.float32),
        b=RNG.normal(size=5).astype(np.float32),
        v=RNG.normal(size=(45, 4)).astype(np.float32),
    )


def dtypes(model: ir.Model) -> dict[str, str]:
    values = (v for node in model.graph for v in node.outputs)
    return {str(v.name): v.dtype.name for v in values if v.dtype is not None}


def kept(record: PassRecord) -> dict[str, str]:
    """Operator or node name -> reason, of what stays in float32."""
    return {refusal.node: refusal.reason for refusal in record.stats.refused}


@pytest.mark.parametrize("kind", HALVES)
def test_values_become_half_under_their_names_and_ports_stay_float32(kind: str) -> None:
    model, record = halved(conv_net(), Half(type=kind))  # type: ignore[arg-type]
    inner = {name: dtype for name, dtype in dtypes(model).items() if name in "crmfg"}
    assert inner == dict.fromkeys("crmfg", kind.upper())
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert record.stats.details["casts"] == 2
    assert [v.name for v in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("kind", HALVES)
def test_weights_are_rounded_to_nearest_even(kind: str) -> None:
    unit = 2.0**-11 if kind == "float16" else 2.0**-8
    ties = np.array([1 + unit, 1 + 3 * unit, -1 - unit, 0.1], np.float32)
    model, _ = halved(graph("y = Add(x, w)", "float[4] x, float[4] w", "float[4] y", w=ties), Half(type=kind))  # type: ignore[arg-type]
    (weight,) = [
        v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None
    ]
    assert weight.dtype == HALVES[kind]
    assert weight.astype(np.float64)[:3].tolist() == [1, 1 + 4 * unit, -1]


@pytest.mark.parametrize("kind", HALVES)
def test_outputs_differ_by_the_rounding_of_the_type(kind: str) -> None:
    model, x = conv_net(), {"x": RNG.normal(size=(1, 3, 4, 4)).astype(np.float32)}
    want, got = evaluate(model, x)["y"], evaluate(halved(model, Half(type=kind))[0], x)["y"]  # type: ignore[arg-type]
    unit = 2.0**-11 if kind == "float16" else 2.0**-8
    # Logits of some 10 carry a few roundings each; softmax passes on less than their difference.
    assert 0 < np.abs(got - want).max() < 8 * 10 * unit


def test_half_ports_on_demand() -> None:
    model, record = halved(conv_net(), Half(io="half"))
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT16] * 2
    assert record.stats.details["casts"] == 0
    assert [v.name for v in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]


def test_ports_in_bfloat16_are_refused() -> None:
    with pytest.raises(PipelineError, match="NumPy arrays cannot carry"):
        Half(type="bfloat16", io="half")


KEPT = {
    "powers": ("y = Pow(x, two)", "float two", {"two": np.float32(2)}, "its result can leave the range"),
    "exponentials": ("y = Exp(x)", "", {}, "its result can leave the range"),
    "squares": ("y = Mul(x, x)", "", {}, "a square"),
    "sums": ("y = ReduceSum<keepdims: int = 1>(x)", "", {}, "its result can leave the range"),
    "angles": ("y = Sin(x)", "", {}, "angles"),
    "constants beyond the range": ("y = Mul(x, c)", "float[1] c", {"c": np.float32([1e5])}, "reaches 1e+05"),
    "constants that vanish": ("y = Add(x, c)", "float[1] c", {"c": np.float32([1e-12])}, "would become 0"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_in_float32_says_why(name: str) -> None:
    body, more, constants, why = KEPT[name]
    inputs = "float[2,4] x" + (f", {more}" if more else "")
    _, record = halved(graph(body, inputs, "float[n,m] y", **constants))
    (reason,) = kept(record).values()
    assert why in reason
    assert record.stats.changed == 0


def test_a_constant_within_the_range_is_no_reason() -> None:
    c = np.float32([6e4])
    _, record = halved(graph("y = Mul(x, c)", "float[2,4] x, float[1] c", "float[2,4] y", c=c))
    assert not kept(record)
    assert record.stats.changed == 1


def test_bfloat16_has_the_range_for_constants() -> None:
    c = np.float32([1e5])
    _, record = halved(
        graph("y = Mul(x, c)", "float[2,4] x, float[1] c", "float[2,4] y", c=c), Half(type="bfloat16")
    )
    assert not kept(record)


def test_a_variance_stays_in_float32_until_it_meets_the_data() -> None:
    """Decomposed layer normalization: the squares and what is only computed from them."""
    body = """m = ReduceMean(x, a) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, a)
              e = Add(v, eps) s = Sqrt(e) y = Div(d, s)"""
    model = graph(
        body, "float[2,8] x, float two, float eps, int64[1] a", "float[2,8] y",
        two=np.float32(2), eps=np.float32(1e-12), a=np.int64([-1]),
    )  # fmt: skip
    converted, _ = halved(model)
    found = dtypes(converted)
    assert {name: found[name] for name in "mdpves"} == {
        "m": "FLOAT16", "d": "FLOAT16", "p": "FLOAT", "v": "FLOAT", "e": "FLOAT", "s": "FLOAT"
    }  # fmt: skip
    # Squares of 600 are beyond float16; their mean is not needed there.
    x = {"x": (600 * RNG.normal(size=(2, 8))).astype(np.float32)}
    assert np.abs(evaluate(converted, x)["y"] - evaluate(model, x)["y"]).max() < 4 * 3 * 2.0**-10


@pytest.mark.parametrize(("mask", "dtype"), [(-3.4e38, "FLOAT"), (-1e4, "FLOAT16")])
def test_a_masked_softmax_stays_in_float32_only_if_the_mask_is_beyond_the_range(
    mask: float, dtype: str
) -> None:
    constants = {"w": RNG.normal(size=(4, 4)).astype(np.float32), "m": np.float32(mask), "k": np.eye(4) > 0}
    model = graph(
        "s = MatMul(x, w) t = Where(k, s, m) p = Softmax(t) y = MatMul(p, w)",
        "float[4,4] x, float[4,4] w, float m, bool[4,4] k", "float[4,4] y", **constants,
    )  # fmt: skip
    converted, _ = halved(model)
    found = dtypes(converted)
    assert (found["s"], found["t"], found["p"]) == ("FLOAT16", dtype, dtype)
    x = {"x": RNG.normal(size=(4, 4)).astype(np.float32)}
    assert np.isfinite(evaluate(converted, x)["y"]).all()


@pytest.mark.parametrize(
    ("start", "kind"), [("p = Cast<to: int = 1>(i) a = Mul(p, f)", np.int64), ("a = Mul(i, f)", np.float32)]
)
def test_what_computes_angles_stays_in_float32(start: str, kind: type[np.generic]) -> None:
    """Positions of 3001 times a frequency: half floats would be off by a radian."""
    position = "int64[1] i" if kind is np.int64 else "float[1] i"
    model = graph(
        f"{start} c = Cos(a) y = Mul(c, x)", f"{position}, float[4] f, float[4] x", "float[4] y",
        f=np.float32([1, 0.1, 0.01, 0.001]),
    )  # fmt: skip
    converted, _ = halved(model)
    assert dtypes(converted)["a"] == "FLOAT"
    inputs = {"i": np.asarray([3001], kind), "x": np.ones(4, np.float32)}
    assert np.array_equal(*(evaluate(m, inputs, ["c"])["c"] for m in (converted, model)))


def test_bounds_beyond_the_range_become_infinite() -> None:
    top = np.float32(3e38)
    model = graph("y = Clip(x, l, h)", "float[4] x, float l, float h", "float[4] y", l=np.float32(-1), h=top)
    converted, record = halved(model)
    assert not kept(record)
    x = {"x": np.float32([-5, 0, 1e4, 6e4])}
    assert evaluate(converted, x)["y"].tolist() == [-1, 0, 1e4, 6e4]


def quantized(weights: str) -> ir.Model:
    """A layer between quantized values, with `weights`."""
    return graph(
        f"""xr = DequantizeLinear(x, s) wr = DequantizeLinear(w, s) c = Conv(xr, {weights}) r = Relu(c)
            q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z)""",
        "int8[1,2,4,4] x, int8[3,2,3,3] w, float[3,2,3,3] v, float s, int8 z", "float[a,b,c,d] y",
        w=RNG.integers(-9, 9, (3, 2, 3, 3)).astype(np.int8), s=np.float32(0.1), z=np.int8(0),
        v=RNG.normal(size=(3, 2, 3, 3)).astype(np.float32),
    )  # fmt: skip


def test_quantized_layers_are_left_alone() -> None:
    model, record = halved(quantized("wr"))
    assert record.stats.changed == 0
    assert "FLOAT16" not in dtypes(model).values()


def test_a_float_layer_between_quantized_values_becomes_half() -> None:
    model, _ = halved(quantized("v"))
    assert (dtypes(model)["xr"], dtypes(model)["c"]) == ("FLOAT", "FLOAT16")


@pytest.mark.parametrize(("scale", "dtype"), [(0.05, "FLOAT16"), (2.0**-15, "FLOAT")])
def test_weights_in_few_bits_become_half_at_once_unless_the_scale_loses_digits(
    scale: float, dtype: str
) -> None:
    q = RNG.integers(-8, 8, (8, 4)).astype(np.int8)
    body = "w = DequantizeLinear(q, s) y = MatMul(x, w)"
    inputs = "float[2,8] x, int8[8,4] q, float s"
    model, _ = halved(graph(body, inputs, "float[2,4] y", q=q, s=np.float32(scale)))
    assert dtypes(model)["w"] == dtype
    assert dtypes(model)["y_half"] == "FLOAT16"


# --- ranges -----------------------------------------------------------------------------------------


def growing() -> ir.Model:
    w = np.full((4, 4), 300, np.float32)
    return graph("h = MatMul(x, w) y = Relu(h)", "float[2,4] x, float[4,4] w", "float[2,4] y", w=w)


def samples(model: ir.Model, **arrays: np.ndarray) -> object:
    return open_samples(arrays, signature_of(model), purpose="calibration")


def test_values_beyond_the_range_are_named_with_their_maximum() -> None:
    model = growing()
    data = samples(model, x=np.full((6, 4), 60, np.float32))
    with pytest.raises(ModelError) as caught:
        halved(model, calibration=data)
    assert caught.value.reason == "half-overflow"
    assert "'h' of node" in caught.value.message
    assert "72000" in caught.value.message
    assert "'y'" in caught.value.message
    assert "bf16" in caught.value.next_step


@pytest.mark.parametrize(
    ("half", "data"),
    [(Half(type="bfloat16"), 60), (Half(keep="h,y"), 60), (Half(), 50)],
    ids=["bfloat16", "kept", "smaller data"],
)
def test_ways_out_of_an_overflow(half: Half, data: float) -> None:
    model = growing()
    converted, _ = halved(model, half, calibration=samples(model, x=np.full((6, 4), data, np.float32)))
    x = {"x": np.full((2, 4), data, np.float32)}
    assert np.isfinite(evaluate(converted, x)["y"]).all()


def test_an_excluded_node_stays_in_float32() -> None:
    model = growing()
    names = tuple(str(node.name) for node in model.graph)
    _, record = halved(model, exclude=names)
    assert record.stats.changed == 0
    assert all(why.startswith("kept by") for why in kept(record).values())


def test_without_calibration_data_a_note_says_that_nobody_looked() -> None:
    assert "nobody looked" in halved(growing())[1].stats.notes[0]
    assert not halved(growing(), Half(type="bfloat16"))[1].stats.notes


def test_data_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        samples(growing(), x=np.full((2, 4), np.nan, np.float32))
    assert caught.value.reason == "calibration-nan"


def test_a_value_that_is_not_a_number_is_refused() -> None:
    model = graph("l = Log(x) y = Relu(l)", "float[2,4] x", "float[2,4] y")
    with pytest.raises(DataError, match="not a number") as caught:
        halved(model, calibration=samples(model, x=np.full((2, 4), -1, np.float32)))
    assert caught.value.reason == "calibration-not-finite"


def test_infinities_of_the_float_model_are_no_overflow() -> None:
    model = graph("l = Log(x) y = Relu(l)", "float[2,4] x", "float[2,4] y")
    halved(model, calibration=samples(model, x=np.zeros((2, 4), np.float32)))


def test_lost_weights_are_counted() -> None:
    w = np.float32([1, 1e-6, 1e-9, 0])
    _, record = halved(graph("y = Mul(x, w)", "float[4] x, float[4] w", "float[4] y", w=w))
    assert (record.stats.details["weights_to_zero"], record.stats.details["weights_subnormal"]) == (1, 1)
    assert "1 became 0" in record.stats.notes[-1]


def test_a_keep_that_names_nothing_is_told() -> None:
    assert "keep=Sofmax names no" in halved(conv_net(), Half(keep="Sofmax"))[1].stats.notes[0]


def test_keep_takes_operators() -> None:
    model, record = halved(conv_net(), Half(keep="Softmax"))
    assert kept(record) == {str(n.name): "kept by 'Softmax'" for n in model.graph if n.op_type == "Softmax"}


# --- graphs in graphs -------------------------------------------------------------------------------


def branching() -> ir.Model:
    """One branch multiplies by `k` and divides by it again."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4] x, bool c, float k) => (float[4] y) {
        o = Relu(x)
        y = If (c) <
            then_branch = t () => (float[4] a) { d = Mul(o, k) s = Div(d, k) a = Tanh(s) },
            else_branch = e () => (float[4] b) { b = Identity(o) }
        > }"""
    return import_model(ir.to_proto(ir.from_onnx_text(text))).model


def inner_types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {str(v.name): v.dtype for n in all_nodes(model) for v in n.outputs}


def test_bodies_compute_in_bfloat16_between_float32_borders() -> None:
    model = branching()
    converted, record = halved(model, Half(type="bfloat16"))
    assert record.stats.changed >= 3
    assert inner_types(converted)["d"] == ir.DataType.BFLOAT16
    for choice in (True, False):
        inputs = {"x": np.float32([-1, 0, 0.3, 2]), "c": np.array(choice), "k": np.float32(1e4)}
        got, want = evaluate(converted, inputs)["y"], evaluate(model, inputs)["y"]
        assert got.dtype == np.float32
        assert np.abs(got - want).max() < 2.0**-6


def test_bodies_stay_in_float32_where_float16_could_overflow_unseen() -> None:
    model = branching()
    converted, record = halved(model)
    assert inner_types(converted)["o"] == ir.DataType.FLOAT16
    assert inner_types(converted)["d"] == ir.DataType.FLOAT
    assert "in a body" in kept(record)[next(str(n.name) for n in all_nodes(model) if n.op_type == "Tanh")]
    inputs = {"x": np.float32([-1, 0, 0.3, 20]), "c": np.array(True), "k": np.float32(1e4)}
    assert np.abs(evaluate(converted, inputs)["y"] - evaluate(model, inputs)["y"]).max() < 2.0**-9


def test_a_note_says_that_bodies_stay_in_float32() -> None:
    assert any("4 operator(s) in bodies" in note for note in halved(branching())[1].stats.notes)
    assert not any("bodies" in note for note in halved(growing())[1].stats.notes)


def test_a_model_in_half_already_is_untouched() -> None:
    model = graph("y = Relu(x)", "float16[4] x", "float16[4] y")
    assert halved(model)[1].stats.changed == 0
