import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native import thresholds as th
from pared.backends.cpu.native.kernels.bits import Code
from pared.backends.reference import evaluate
from pared.compiler.ir.importer import import_model

QUICK = settings(deadline=None, max_examples=30)


def graph(body, rank="N,3", extra=""):
    """A model whose input x is an accumulator; `body` ends in y."""
    text = f"""<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1,
        "finn.custom_op.general" : 1]>
    g (float[{rank}] x) => (float[{rank}] y) {extra} {{ {body} }}"""
    return import_model(ir.from_onnx_text(text)).model


def batch_norm(seed, quantizer):
    """BatchNorm with scales of both signs and one channel that is constant, then a quantizer."""
    rng = np.random.default_rng(seed)
    lists = [rng.normal(size=3), rng.normal(size=3), rng.normal(size=3) * 4, rng.uniform(0.5, 40, 3)]
    lists[0][2] = 0
    names = ("s", "b", "m", "v")
    text = ", ".join(
        f"float[3] {name} = {{{', '.join(f'{value:.7f}' for value in values)}}}"
        for name, values in zip(names, lists, strict=True)
    )
    extra = f"<{text}, float one = {{1.0}}, float half = {{0.5}}, float zero = {{0.0}}, float two = {{2.0}}>"
    return graph(f"n = BatchNormalization(x, s, b, m, v) {quantizer}", extra=extra)


QUANTIZERS = {
    Code.BINARY: "y = qonnx.custom_op.general.BipolarQuant(n, half)",
    Code.TERNARY: "y = qonnx.custom_op.general.Quant<narrow=1, signed=1>(n, half, zero, two)",
    Code.INT2: "y = qonnx.custom_op.general.Quant<narrow=0, signed=1>(n, half, zero, two)",
    Code.UINT2: "y = qonnx.custom_op.general.Quant<narrow=0, signed=0>(n, half, zero, two)",
}


def apply(folded, values, code):
    """What a kernel makes of accumulators [A], per channel: [A, C]."""
    signed = np.where(folded.negate, -1, 1) * values[:, None]
    return np.array(code.values)[(signed[..., None] >= folded.thresholds).sum(-1)]


def folded_chain(model, accumulators):
    nodes = th.chain_to_quantizer(model.graph.inputs[0])
    book = th.codebook_of(nodes[-1])
    codes = th.codes_of(th.evaluate_chain(nodes, accumulators, 3), book)
    return th.fold(codes, accumulators, book.code), book


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("seed", range(6))
def test_batch_norm_and_quantizer_fold_to_what_the_reference_computes(code, seed):
    model = batch_norm(seed, QUANTIZERS[code])
    accumulators = np.arange(-40, 41)
    folded, book = folded_chain(model, accumulators)
    assert book == th.Codebook(code, 0.5)
    x = np.repeat(accumulators[:, None], 3, axis=1).astype(np.float32)
    want = evaluate(model, {"x": x})["y"]
    np.testing.assert_array_equal(apply(folded, accumulators, code) * np.float32(0.5), want)


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("seed", range(4))
def test_thresholds_of_floats_are_exact_to_the_last_bit(code, seed):
    model = batch_norm(seed, QUANTIZERS[code])
    nodes = th.chain_to_quantizer(model.graph.inputs[0])
    book = th.codebook_of(nodes[-1])
    folded = th.fold_floats(lambda x: th.codes_of(th.evaluate_chain(nodes, x, 3), book), 3, code)
    # The thresholds themselves and their neighbours are where an error would show.
    finite = np.where(np.isfinite(folded.thresholds), folded.thresholds, 0).T.astype(np.float32)
    near = np.concatenate(
        [finite, np.nextafter(finite, np.float32(-9e9)), np.nextafter(finite, np.float32(9e9))]
    )
    x = np.where(folded.negate, -near, near).astype(np.float32)
    want = evaluate(model, {"x": x})["y"]
    got = np.array(code.values)[(near[..., None] >= folded.thresholds).sum(-1)]
    np.testing.assert_array_equal(got * np.float32(0.5), want)


@QUICK
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=3), st.booleans())
def test_multithreshold_counts_thresholds_that_an_accumulator_equals(levels, scaled):
    table = ", ".join(str(float(level)) for level in sorted(levels))
    scale, bias = (2.0, -1.0) if len(levels) == 1 else (1.0, 0.0)
    extra = f"<float[1,{len(levels)}] t = {{{table}}}, float k = {{{-0.5 if scaled else 1.0}}}>"
    quantizer = f"finn.custom_op.general.MultiThreshold<out_scale={scale}, out_bias={bias}>(n, t)"
    model = graph(f"n = Mul(x, k) y = {quantizer}", extra=extra)
    accumulators = np.arange(-25, 26)
    folded, book = folded_chain(model, accumulators)
    assert folded.negate.all() or not scaled or (np.ptp(apply(folded, accumulators, book.code)) == 0)
    x = np.repeat(accumulators[:, None], 3, axis=1).astype(np.float32)
    want = evaluate(model, {"x": x})["y"]
    np.testing.assert_array_equal(apply(folded, accumulators, book.code) * np.float32(book.scale), want)


def test_only_reachable_accumulators_matter():
    codes = np.array([[-1], [1], [1]])
    folded = th.fold(codes, np.array([-3, 1, 5]), Code.BINARY)
    assert folded.thresholds.tolist() == [[1]]


def test_channels_that_never_switch_get_thresholds_beyond_all_sums():
    codes = np.array([[-1, 1], [-1, 1]])
    folded = th.fold(codes, np.array([-2, 2]), Code.BINARY)
    np.testing.assert_array_equal(apply(folded, np.array([-2, 2]), Code.BINARY), codes)


def test_a_channel_that_rises_and_falls_is_refused():
    with pytest.raises(th.CannotFold, match="channel 1 rises and falls"):
        th.fold(np.array([[-1, -1], [-1, 1], [1, -1]]), np.arange(3), Code.BINARY)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("n = Sub(k, x) y = qonnx.custom_op.general.BipolarQuant(n, k)", "has no threshold form"),
        ("n = Sin(x) y = qonnx.custom_op.general.BipolarQuant(n, k)", "has no threshold form"),
        ("n = Mul(x, k) z = qonnx.custom_op.general.BipolarQuant(n, k) y = Add(n, z)", "one operator alone"),
        ("y = Mul(x, k)", "one operator alone"),
    ],
)
def test_what_is_no_chain_is_refused_with_its_reason(body, reason):
    model = graph(body, extra="<float k = {3.0}>")
    with pytest.raises(th.CannotFold, match=reason):
        th.chain_to_quantizer(model.graph.inputs[0])


@pytest.mark.parametrize("bits", ["4.0", "3.0"])
def test_wider_quantizers_are_refused(bits):
    quantizer = "y = qonnx.custom_op.general.Quant(x, one, zero, bits)"
    model = graph(quantizer, extra=f"<float one = {{1.0}}, float zero = {{0.0}}, float bits = {{{bits}}}>")
    with pytest.raises(th.CannotFold, match="bits"):
        th.codebook_of(th.chain_to_quantizer(model.graph.inputs[0])[-1])


@pytest.mark.parametrize("name", ["tfc_1w1a_qonnx", "tfc_2w2a_qonnx", "finn_tfc_multithreshold"])
def test_every_hidden_layer_of_the_real_models_folds_to_what_the_reference_computes(name):
    folder = os.environ.get("PARED_DATA")
    if not folder or not (Path(folder) / "models" / f"{name}.onnx").exists():
        pytest.skip(f"PARED_DATA has no models/{name}.onnx")
    model = import_model(Path(folder) / "models" / f"{name}.onnx").model
    products = [node.outputs[0] for node in model.graph if node.op_type == "MatMul"]
    assert len(products) == 4
    for product in products[:3]:
        nodes = th.chain_to_quantizer(product)
        book = th.codebook_of(nodes[-1])
        reach = 784 if product is products[0] else 64
        accumulators = np.arange(-reach, reach + 1)
        reals = th.evaluate_chain(nodes, accumulators, 64)
        folded = th.fold(th.codes_of(reals, book), accumulators, book.code)
        np.testing.assert_array_equal(apply(folded, accumulators, book.code), th.codes_of(reals, book))
        seen = evaluate(
            model,
            {model.graph.inputs[0].name: np.random.default_rng(0).random((1, 1, 28, 28), np.float32)},
            [product.name, nodes[-1].outputs[0].name],
        )
        sums, want = (seen[key] for key in (product.name, nodes[-1].outputs[0].name))
        got = np.array(book.code.values)[
            (np.where(folded.negate, -sums, sums)[..., None] >= folded.thresholds).sum(-1)
        ]
        np.testing.assert_array_equal(got * np.float32(book.scale), want)
