"""NaN and infinities through whole models, and a library that somebody changed."""

import ctypes

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from test_lower_read import with_constants
from test_lower_run import executable

import pared
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.reference import evaluate
from pared.compiler.errors import ArtifactError

pytestmark = pytest.mark.skipif(not isinstance(host_isa(), Isa), reason="no supported CPU")
SHAPE = (1, 18, 10, 6)
CONSTANTS = {
    "low": np.float32(-1), "high": np.float32(2), "scale": np.float32(0.1),
    "za": np.uint8(7), "zb": np.int8(-3),
    "wide": np.random.default_rng(1).standard_normal((20, 18, 1, 1)).astype(np.float32),
}  # fmt: skip
SPECIAL = {(0, 3, 4, 2): np.nan, (0, 5, 1, 1): np.inf, (0, 9, 8, 4): -np.inf, (0, 17, 9, 5): np.nan}
HEAD = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,18,10,6] x) => '


def graph(body, kind="float"):
    used = {name: array for name, array in CONSTANTS.items() if f", {name}" in body}
    return with_constants(f"{HEAD}({kind}[a,b,c,d] y) {{{body}}}", used)


def special():
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for at, value in SPECIAL.items():
        x[at] = value
    return {"x": x}


def native_and_wanted(body, folder, kind="float"):
    model, inputs = graph(body, kind), special()
    with np.errstate(all="ignore"):
        want = evaluate(model, inputs)["y"]
    return executable(model, folder).run(inputs)["y"], want


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",
        "y = Clip(x, low, high)",
        "y = Add(x, x)",
        "y = LeakyRelu<alpha=0.1>(x)",
        "y = HardSwish(x)",
        "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)",
        "y = GlobalAveragePool(x)",
        "y = Conv<kernel_shape=[1,1]>(x, wide)",
        "c = Conv<kernel_shape=[1,1]>(x, wide)\n y = Relu(c)",
    ],
)
def test_nan_and_infinities_come_out_where_the_reference_has_them(body, tmp_path):
    got, want = native_and_wanted(body, tmp_path)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    usual = np.isfinite(want)
    np.testing.assert_allclose(got[usual], want[usual], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("zero", "kind"), [("za", "uint8"), ("zb", "int8")])
def test_quantizing_saturates_infinities_and_gives_nan_the_zero_point(zero, kind, tmp_path):
    got, want = native_and_wanted(f"y = QuantizeLinear(x, scale, {zero})", tmp_path, kind)
    np.testing.assert_array_equal(got, want)
    assert got[0, 3, 4, 2] == CONSTANTS[zero]
    assert got[0, 5, 1, 1] == np.iinfo(kind).max
    assert got[0, 9, 8, 4] == np.iinfo(kind).min


@pytest.mark.parametrize(
    "body",
    [
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
        "y = Softmax(x)",
        "y = Sigmoid(x)",
        "y = Tanh(x)",
    ],
)
def test_what_reads_no_nan_and_no_infinity_is_as_without_them(body, tmp_path):
    got, want = native_and_wanted(body, tmp_path)
    usual = np.isfinite(want)
    assert usual.sum() > want.size / 2
    np.testing.assert_allclose(got[usual], want[usual], rtol=1e-4, atol=1e-4)


def test_a_changed_library_is_refused_by_its_hash_and_never_opened(tmp_path, monkeypatch):
    model = graph("y = Relu(x)")
    pared.compile(model, target="cpu", engine="native", threads=1, output=tmp_path / "out")
    library = tmp_path / "out" / "model.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)

    def opened(*_args, **_options):
        raise AssertionError("a changed library was opened")

    monkeypatch.setattr(ctypes, "CDLL", opened)
    with pytest.raises(ArtifactError, match=r"'model\.so' was changed.*sha256") as caught:
        pared.load(tmp_path / "out")
    assert caught.value.reason == "artifact-file-changed"
