"""pads_of: what `auto_pad` stands for, by onnxruntime's own convolution."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.compiler.ir.importer import import_model
from pared.compiler.ir.windows import pads_of
from pared.compiler.ort import make_session, run_session


def conv(attributes: str, size: tuple[int, int], kernel: tuple[int, int]) -> ir.Model:
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[1,1,{size[0]},{size[1]}] x)'
        " => (float[1,1,p,q] y)"
        f" {{ y = Conv<{attributes}>(x, w) }}"
    )
    proto = onnx.parser.parse_model(text)
    w = np.arange(1, 1 + kernel[0] * kernel[1], dtype=np.float32).reshape(1, 1, *kernel)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return import_model(proto).model


@given(
    st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_explicit_pads_do_what_auto_pad_does(
    mode: str, kernel: tuple[int, int], strides: tuple[int, int], size: tuple[int, int]
) -> None:
    steps = f"strides = [{strides[0]}, {strides[1]}]"
    auto = conv(f'auto_pad = "{mode}", {steps}', size, kernel)
    pads = pads_of(auto.graph[0], kernel, strides, (1, 1), size)
    given_pads = conv(f"pads = [{', '.join(map(str, pads))}], {steps}", size, kernel)
    x = {"x": np.arange(size[0] * size[1], dtype=np.float32).reshape(1, 1, *size)}
    want, got = (run_session(make_session(model), x)["y"] for model in (auto, given_pads))
    assert np.array_equal(got, want)


@pytest.mark.parametrize(("dilation", "pads"), [(1, (1, 1)), (3, (3, 3))])
def test_same_reaches_as_far_as_a_dilated_kernel(dilation: int, pads: tuple[int, int]) -> None:
    node = ir.node("Conv", [], {"auto_pad": "SAME_UPPER"})
    assert pads_of(node, (3,), (1,), (dilation,), (8,)) == pads


def test_pads_as_written_or_none() -> None:
    assert pads_of(ir.node("Conv", [], {"pads": [1, 2, 3, 4]}), (3, 3), (1, 1), (1, 1), (8, 8)) == (
        1,
        2,
        3,
        4,
    )
    assert pads_of(ir.node("Conv", []), (3, 3), (1, 1), (1, 1), (8, 8)) == (0, 0, 0, 0)
