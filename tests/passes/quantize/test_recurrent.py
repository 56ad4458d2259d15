"""Recurrent and body weights become integers that are dequantized once, where it is legal."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, run

from pared.compiler.ir import walk
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.quant import view
from pared.compiler.ir.verifier import verify_graph
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context
from pared.passes.quantize.recurrent import QuantizeRecurrent, store_integers

SCAN = """g (float[1,16] h0, float[T,1,16] xs, float[32,16] w, float[16] b) =>
    (float[1,16] h, float[T,1,16] ys) {
    [loop] h, ys = Scan<num_scan_inputs: int = 1, body: graph = step (float[1,16] hin, float[1,16] x) =>
        (float[1,16] hout, float[1,16] y) {
        both = Concat<axis: int = 1>(x, hin) [cell] s = Gemm(both, w, b) hout = Tanh(s) y = Identity(hout) }>
    (h0, xs) }"""

BODY_WEIGHT = """g (float[1,16] h0, float[T,1,16] xs) => (float[1,16] h, float[T,1,16] ys) {
    [loop] h, ys = Scan<num_scan_inputs: int = 1, body: graph = step (float[1,16] hin, float[1,16] x) =>
        (float[1,16] hout, float[1,16] y) {
        [cell] s = MatMul(hin, w) t = Add(s, x) hout = Tanh(t) y = Identity(hout) }>
    (h0, xs) }"""

# onnxruntime packs constant weights and sums in another order then: 33 terms below 4 * 4, each sum off by at
# most 33 half ulps of the sum of magnitudes of N(0, 1) products (mean 0.64); tanh's slope is at most 1.
ONE_STEP = 33 * 33 * 0.64 * float(np.finfo(np.float32).eps)

BRANCH = """g (bool c, float[2,16] x) => (float[2,16] y) {
    y = If<then_branch: graph = yes () => (float[2,16] a) { [cell] a = MatMul(x, w) },
           else_branch: graph = no () => (float[2,16] d) { d = Identity(x) }>(c) }"""


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scan() -> ir.Model:
    return graph(SCAN, w=weights(32, 16), b=weights(16, seed=1))


def with_body_weight(text: str) -> ir.Model:
    """A model whose body owns the initializer `w`."""
    plain = text.replace("(float[1,16] h0", "(float[16,16] w, float[1,16] h0")
    model = graph(plain.replace("(bool c", "(float[16,16] w, bool c"), w=weights(16, 16))
    value = model.graph.initializers.pop("w")
    user = walk.users(value)[0]
    assert isinstance(user.graph, ir.Graph)
    user.graph.register_initializer(value)
    return model


def dequantized(model: ir.Model, node_name: str, index: int = 1) -> tuple[ir.Node, np.ndarray]:
    """The DequantizeLinear behind an operand, and what it yields."""
    node = next(n for n in walk.all_nodes(model) if n.name == node_name)
    maker = walk.producer(node.inputs[index], "DequantizeLinear")
    assert maker is not None
    stored = walk.constant(maker.inputs[0])
    params = view(node.inputs[index])
    assert stored is not None
    assert params is not None
    axis = params.spec.axis
    shape = [-1 if i == axis else 1 for i in range(stored.ndim)]
    return maker, stored.astype(np.float32) * params.scale.reshape(shape if axis is not None else ())


def as_float(model: ir.Model, replacements: dict[str, np.ndarray]) -> ir.Model:
    """The float model with other numbers in its weights."""
    copy = model.clone()
    for body in walk.all_graphs(copy):
        for name, array in replacements.items():
            if name in body.initializers:
                body.initializers[name].const_value = ir.tensor(array, name=name)
    return copy


def test_the_dequantized_weight_is_within_half_a_scale() -> None:
    w = weights(32, 16)
    q, scale = store_integers(w, 1, 8)
    # Half a step, and the rounding of the quotient by at most 127 ulps.
    assert np.abs(q * scale - w).max() <= scale.max() * (0.5 + 127 * 2**-23)
    np.testing.assert_array_equal(np.abs(q).max(axis=0), 127)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_symmetric_and_use_the_whole_range(bits: int) -> None:
    q, _ = store_integers(weights(32, 16), None, bits)
    assert np.abs(q.astype(int)).max() == 2 ** (bits - 1) - 1


def test_a_channel_of_zeros_gets_a_usable_scale() -> None:
    w = weights(8, 4)
    w[:, 2] = 0
    q, scale = store_integers(w, 1, 8)
    assert scale[2] == 1.0
    np.testing.assert_array_equal(q[:, 2], 0)


def test_a_scan_computes_with_the_dequantized_weights() -> None:
    model = scan()
    before = model.clone()
    QuantizeRecurrent().apply(model, Context())
    verify_graph(model)
    inputs = {"h0": weights(1, 16, seed=2), "xs": weights(1, 1, 16, seed=3)}
    _, w = dequantized(model, "cell")
    exact = run(as_float(before, {"w": w}), inputs)["ys"]
    np.testing.assert_allclose(run(model, inputs)["ys"], exact, rtol=0, atol=ONE_STEP)
    assert np.abs(run(before, inputs)["ys"] - exact).max() > 10 * ONE_STEP


def test_the_weight_is_dequantized_outside_the_loop() -> None:
    model = scan()
    QuantizeRecurrent().apply(model, Context())
    maker, _ = dequantized(model, "cell")
    assert maker.graph is model.graph


def test_a_weight_that_the_body_owns_is_hoisted() -> None:
    model = with_body_weight(BODY_WEIGHT)
    before = model.clone()
    stats = QuantizeRecurrent(min_elements=16).apply(model, Context())
    assert stats.changed == 1
    verify_graph(model)
    maker, w = dequantized(model, "cell")
    assert maker.graph is model.graph
    inputs = {"h0": weights(1, 16, seed=2), "xs": weights(1, 1, 16, seed=3)}
    exact = run(as_float(before, {"w": w}), inputs)["h"]
    np.testing.assert_allclose(run(model, inputs)["h"], exact, rtol=0, atol=ONE_STEP)


def test_a_weight_of_a_branch_stays_in_the_branch() -> None:
    model = with_body_weight(BRANCH)
    QuantizeRecurrent(min_elements=16).apply(model, Context())
    verify_graph(model)
    maker, _ = dequantized(model, "cell")
    node = next(n for n in walk.all_nodes(model) if n.name == "cell")
    assert maker.graph is node.graph
    assert maker.graph is not model.graph


def test_the_dequantized_value_takes_the_name_of_the_weight() -> None:
    model = scan()
    QuantizeRecurrent().apply(model, Context())
    assert dequantized(model, "cell")[0].outputs[0].name == "w"


CELLS = {
    "LSTM": "y = LSTM<hidden_size: int = 8{extra}>(x, w, r)",
    "GRU": "y = GRU<hidden_size: int = 8{extra}>(x, w, r)",
    "RNN": "y = RNN<hidden_size: int = 8{extra}>(x, w, r)",
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_compute_with_the_dequantized_weights(kind: str, directions: int) -> None:
    rows = 8 * GATES[kind]
    extra = ', direction: string = "bidirectional"' if directions == 2 else ""
    text = CELLS[kind].format(extra=extra)
    model = graph(
        f"g (float[5,1,6] x, float[{directions},{rows},6] w, float[{directions},{rows},8] r) => "
        f"(float[5,{directions},1,8] y) {{ [cell] {text} }}",
        w=weights(directions, rows, 6),
        r=weights(directions, rows, 8, seed=1),
    )
    before = model.clone()
    stats = QuantizeRecurrent(min_elements=16).apply(model, Context())
    assert stats.changed == 2
    verify_graph(model)
    exact = as_float(before, {"w": dequantized(model, "cell", 1)[1], "r": dequantized(model, "cell", 2)[1]})
    x = {"x": weights(5, 1, 6, seed=2)}
    # Packed and unpacked weights may be summed in another order: 14 terms below 4 per gate, 5 steps,
    # activation slopes of at most 1.
    np.testing.assert_allclose(run(model, x)["y"], run(exact, x)["y"], rtol=0, atol=5 * 14 * 4 * 1.2e-7)


def test_gates_reordered_in_the_graph_are_quantized_where_they_are_stored() -> None:
    model = graph(
        """g (float[5,1,6] x, float[32,6] w, float[1,32,8] r, int64[1] zero, int64[1] mid,
        int64[1] end) => (float[5,1,1,8] y) { a = Slice(w, mid, end, zero) b = Slice(w, zero, mid, zero)
        c = Concat<axis: int = 0>(a, b) d = Unsqueeze(c, zero)
        [cell] y = LSTM<hidden_size: int = 8>(x, d, r) }""",
        w=weights(32, 6),
        r=weights(1, 32, 8, seed=1),
        zero=np.array([0]),
        mid=np.array([16]),
        end=np.array([32]),
    )
    stats = QuantizeRecurrent(min_elements=100).apply(model, Context())
    assert stats.changed == 2
    slices = [n for n in model.graph if n.op_type == "Slice"]
    makers = {walk.producer(n.inputs[0]) for n in slices}
    assert [maker.op_type for maker in makers if maker] == ["DequantizeLinear"]


def test_a_computed_weight_is_refused_with_the_reason() -> None:
    model = graph(
        "g (float[5,1,6] x, float[1,32,6] v, float[1,32,8] r) => (float[5,1,1,8] y) "
        "{ w = Relu(v) [cell] y = LSTM<hidden_size: int = 8>(x, w, r) }",
        r=weights(1, 32, 8),
    )
    stats = QuantizeRecurrent(min_elements=16).apply(model, Context())
    assert [(r.node, r.reason) for r in stats.refused] == [("cell", "weight 'w' is not constant")]


def test_small_weights_stay_float_with_the_reason() -> None:
    model = scan()
    stats = QuantizeRecurrent(min_elements=513).apply(model, Context())
    assert stats.changed == 0
    assert [r.reason for r in stats.refused] == ["weight 'w' has 512 elements, fewer than 513"]


@pytest.mark.parametrize("pattern", ["cell", "c.*"])
def test_excluded_nodes_stay_float(pattern: str) -> None:
    model = scan()
    stats = QuantizeRecurrent().apply(model, Context(exclude=(pattern,)))
    assert stats.changed == 0
    assert [r.reason for r in stats.refused] == ["excluded by name"]


def test_layers_of_the_main_graph_are_not_its_business() -> None:
    model = graph(
        "g (float[2,16] x, float[16,16] w) => (float[2,16] y) { y = MatMul(x, w) }", w=weights(16, 16)
    )
    stats = QuantizeRecurrent().apply(model, Context())
    assert (stats.changed, stats.refused) == (0, [])


KWS = {"kws_gru_s": "x640", "kws_lstm_s": "x640", "kws_crnn_s": "x320"}
DATA = os.environ.get("PARED_DATA", "")


@pytest.mark.skipif(not DATA, reason="PARED_DATA is not set")
@pytest.mark.parametrize("name", KWS)
def test_keyword_spotting_files_shrink_below_040_and_lose_at_most_half_a_point(name: str) -> None:
    path = Path(DATA) / "models" / f"{name}.onnx"
    table = np.load(Path(DATA) / "datasets" / "kws_gscv2_mfcc_mlkws.npz")
    model = import_model(path).model
    draft = model.clone()
    QuantizeRecurrent().apply(draft, Context())
    assert len(to_bytes(draft)) <= 0.40 * path.stat().st_size

    def right(which: ir.Model) -> int:
        session, key = make_session(which), which.graph.inputs[0].name
        answers = [run_session(session, {str(key): x[None]}) for x in table[KWS[name]]]
        return sum(
            int(next(iter(a.values())).argmax() == y) for a, y in zip(answers, table["y"], strict=True)
        )

    assert right(draft) >= right(model) - 0.005 * len(table["y"])
