"""compact-constants: each form is made again bit for bit, in fewer bytes, and folded by onnxruntime."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from canon import assert_exact, graph, ops, rand, run, size_of

from pared.compiler.ort import optimized_model
from pared.passes.canonicalize.compact_constants import CompactConstants

NAN = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
RNG = np.random.default_rng(0)

STORED: dict[str, tuple[npt.NDArray[np.generic], list[str]]] = {
    "uniform": (np.full((16, 16), 0.1, np.float32), ["ConstantOfShape"]),
    "uniform of NaN": (np.full(256, NAN, np.float32), ["ConstantOfShape"]),
    "minus zero": (-np.zeros(256, np.float32), ["ConstantOfShape"]),
    "causal mask": (np.triu(np.full((32, 32), -np.inf, np.float32), 1), ["ConstantOfShape", "Trilu"]),
    "lower mask": (np.tril(np.ones((1, 1, 24, 24), np.float32)), ["ConstantOfShape", "Trilu"]),
    "repeated rows": (np.tile(rand(1, 40), (30, 1)), ["Expand"]),
    "positions": (np.arange(512), ["Range"]),
    "every third": (np.arange(10, 1000, 3), ["Range"]),
    "few values": (RNG.choice(rand(20), (50, 50)), ["Cast", "Gather"]),
    "half precision": (rand(40, 40).astype(np.float16).astype(np.float32), ["Cast"]),
    "small integers": (RNG.integers(-30000, 30000, 500), ["Cast"]),
    "bytes as int32": (RNG.integers(-128, 128, 5000).astype(np.int32), ["Cast"]),
}


def model_of(array: npt.NDArray[np.generic]):
    kind = {"f": "float", "i": "int64" if array.itemsize == 8 else "int32"}[array.dtype.kind]
    dims = ",".join(map(str, array.shape))
    return graph(f"g ({kind}[{dims}] x) => ({kind}[{dims}] y) {{ y = Add(x, k) }}", k=array)


@pytest.mark.parametrize("case", STORED)
def test_a_form_is_exact_and_smaller(case: str) -> None:
    array, nodes = STORED[case]
    before = model_of(array)
    after, stats = run(before, CompactConstants())
    assert ops(after) == [*nodes, "Add"]
    assert_exact(before, after)
    assert size_of(after) < size_of(before)
    assert stats.details["estimated_bytes_saved"] > 0


@pytest.mark.parametrize("case", STORED)
def test_onnxruntime_folds_it_when_it_loads(case: str) -> None:
    after, _ = run(model_of(STORED[case][0]), CompactConstants())
    assert [node.op_type for node in optimized_model(after).graph.node] == ["Add"]


@pytest.mark.parametrize(
    "array",
    [
        rand(40, 40),
        np.where(np.arange(256) == 255, 1, 0.5).astype(np.float32)[:8],
        np.concatenate([np.zeros(8, np.float32), -np.zeros(7, np.float32)]),
        RNG.integers(-(2**40), 2**40, 300),
    ],
    ids=["random", "tiny", "tiny of both zeros", "wide integers"],
)
def test_what_has_much_in_it_or_is_tiny_stays(array: npt.NDArray[np.generic]) -> None:
    assert run(model_of(array), CompactConstants())[1].changed == 0


def test_zeros_of_both_signs_are_two_values() -> None:
    array = np.zeros(1000, np.float32)
    array[500] = -0.0
    before = model_of(array)
    after, _ = run(before, CompactConstants())
    feeds = {"x": np.full(1000, -0.0, np.float32)}
    from canon import outputs

    for want, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        assert want.tobytes() == got.tobytes()


def test_one_odd_value_among_many_is_seen() -> None:
    array = np.full(100_000, 0.1, np.float32)
    array[77_777] = 0.2
    before = model_of(array)
    after, _ = run(before, CompactConstants())
    assert ops(after) == ["Cast", "Gather", "Add"]
    assert_exact(before, after)


def test_a_constant_that_is_an_output_stays() -> None:
    before = graph(
        "g (float[256] x) => (float[256] y, float[256] k) { y = Add(x, k) }", k=np.zeros(256, np.float32)
    )
    assert run(before, CompactConstants())[1].changed == 0


def test_the_least_saving_is_an_option() -> None:
    before = model_of(np.full((16, 16), 0.1, np.float32))
    assert run(before, CompactConstants(least_saving=2000))[1].changed == 0


def test_data_of_qonnx_quantizers_stay_for_the_backends() -> None:
    signs = np.where(rand(40, 40) > 0, 1, -1).astype(np.float32)
    own = "qonnx.custom_op.general"
    before = graph(
        f"g (float[40, 40] x) => (float[40, 40] y) {{ b = {own}.BipolarQuant(k, s) y = Add(x, b) }}",
        k=signs,
        s=np.float32(0.5),
    )
    assert run(before, CompactConstants())[1].changed == 0
