"""Convolutions over one axis run as the reference; what is left out is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from test_lower_read import with_constants
from test_lower_run import ISA, assert_as_reference

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import supported

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")

HEAD = '<ir_version: 10, opset_import: ["" : 21]> g (float[2,6,20] x) => (float[2,a,b] y)'
RNG = np.random.default_rng(0)
FORMS = {
    "pointwise": ("y = Conv(x, w)", (20, 6, 1)),
    "with pads, strides and Relu": ("c = Conv<pads=[2,1], strides=[2]>(x, w, v) y = Relu(c)", (9, 6, 5)),
    "by channel, dilated": ("y = Conv<group=6, dilations=[3]>(x, w, v)", (6, 1, 3)),
}


@pytest.mark.parametrize("name", FORMS)
def test_it_runs_as_the_reference(name: str, tmp_path: Path) -> None:
    body, shape = FORMS[name]
    arrays = {"w": RNG.standard_normal(shape).astype(np.float32)}
    if ", v)" in body:
        arrays["v"] = RNG.standard_normal(shape[0]).astype(np.float32)
    model = with_constants(f"{HEAD} {{ {body} }}", arrays)
    assert supported(model, ISA) == []
    assert_as_reference(model, {"x": RNG.standard_normal((2, 6, 20)).astype(np.float32)}, tmp_path)


def test_padding_to_the_same_size_is_refused() -> None:
    model = with_constants(
        f'{HEAD} {{ y = Conv<auto_pad="SAME_UPPER">(x, w) }}', {"w": np.ones((3, 6, 3), np.float32)}
    )
    ((_, reason),) = supported(model, ISA)
    assert "auto_pad" in reason
