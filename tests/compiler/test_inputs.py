import numpy as np
import pytest

from pared.compiler.backend import Port, Signature
from pared.compiler.errors import DataError
from pared.compiler.inputs import InputChecker, check_inputs

IMAGE = Signature((Port("x", "FLOAT", (1, 3, 8, 10)),), ())
BATCH = Signature((Port("a", "INT32", ("N", 2)), Port("b", "FLOAT", ("N",))), ())
SCALAR = Signature((Port("sr", "INT64", ()),), ())


def zeros(*shape: int, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_a_fitting_array_passes_uncopied():
    x = zeros(1, 3, 8, 10)
    assert check_inputs(IMAGE, {"x": x})["x"] is x


def test_strided_arrays_are_made_contiguous():
    x = zeros(1, 8, 10, 3).transpose(0, 3, 1, 2)
    assert check_inputs(IMAGE, {"x": x})["x"].flags.c_contiguous


def test_foreign_byte_order_is_turned():
    x = np.arange(240, dtype=">f4").reshape(1, 3, 8, 10)
    assert check_inputs(IMAGE, {"x": x})["x"].dtype == np.dtype("=f4")


def test_a_scalar_stays_a_scalar():
    assert check_inputs(SCALAR, {"sr": 16000})["sr"].shape == ()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float16, np.bool_])
def test_dtypes_that_fit_are_widened(dtype):
    assert check_inputs(IMAGE, {"x": zeros(1, 3, 8, 10, dtype=dtype)})["x"].dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64, np.complex64])
def test_dtypes_that_may_lose_values_are_refused(dtype):
    with pytest.raises(DataError, match=r"'x' needs float32, got .*astype\(np.float32\)") as caught:
        check_inputs(IMAGE, {"x": zeros(1, 3, 8, 10, dtype=dtype)})
    assert caught.value.reason == "input-dtype"


def test_lists_convert_when_their_values_survive():
    assert check_inputs(BATCH, {"a": [[1, 2]], "b": [0.1]})["b"].dtype == np.float32


@pytest.mark.parametrize("values", [[[1.5, 2]], [[2**40, 2]], [["p", "q"]], [[None, 1]]])
def test_lists_whose_values_do_not_survive_are_refused(values):
    with pytest.raises(DataError, match="'a' needs int32"):
        check_inputs(BATCH, {"a": values, "b": [1.0]})


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(DataError, match=r"missing \['x'\] and unknown \['X1'\]"):
        check_inputs(IMAGE, {"X1": zeros(1, 3, 8, 10)})


def test_an_extra_name_is_refused():
    with pytest.raises(DataError, match=r"unknown \['z'\]"):
        check_inputs(IMAGE, {"x": zeros(1, 3, 8, 10), "z": zeros(1)})


def test_a_bare_array_is_refused():
    with pytest.raises(DataError, match="pass a dict"):
        check_inputs(IMAGE, zeros(1, 3, 8, 10))  # type: ignore[arg-type]


def test_nhwc_for_nchw_is_recognised():
    with pytest.raises(DataError, match=r"NHWC.*x\.transpose\(0, 3, 1, 2\)") as caught:
        check_inputs(IMAGE, {"x": zeros(1, 8, 10, 3)})
    assert caught.value.reason == "input-shape"


def test_nchw_for_nhwc_is_recognised():
    nhwc = Signature((Port("x", "FLOAT", (1, 8, 10, 3)),), ())
    with pytest.raises(DataError, match=r"NCHW.*x\.transpose\(0, 2, 3, 1\)"):
        check_inputs(nhwc, {"x": zeros(1, 3, 8, 10)})


def test_the_transpose_that_the_hint_names_fits():
    assert zeros(1, 8, 10, 3).transpose(0, 3, 1, 2).shape == IMAGE.inputs[0].shape


def test_a_missing_batch_axis_is_recognised():
    with pytest.raises(DataError, match=r"x\[None\]"):
        check_inputs(IMAGE, {"x": zeros(3, 8, 10)})


def test_many_samples_for_a_fixed_batch_are_recognised():
    with pytest.raises(DataError, match="one sample per call"):
        check_inputs(IMAGE, {"x": zeros(5, 3, 8, 10)})


def test_symbolic_sizes_must_agree_between_inputs():
    with pytest.raises(DataError, match="'b' has 3 for dimension 'N', but 'a' has 2"):
        check_inputs(BATCH, {"a": zeros(2, 2, dtype=np.int32), "b": zeros(3)})


def test_unnamed_sizes_need_not_agree():
    free = Signature((Port("a", "FLOAT", ("",)), Port("b", "FLOAT", ("",))), ())
    assert check_inputs(free, {"a": zeros(2), "b": zeros(3)})["b"].shape == (3,)


def test_a_checker_hands_fitting_arrays_through():
    check = InputChecker(IMAGE)
    first, second = {"x": zeros(1, 3, 8, 10)}, {"x": zeros(1, 3, 8, 10)}
    assert check(first)["x"] is first["x"]
    assert check(second)["x"] is second["x"]


@pytest.mark.parametrize(
    "later",
    [
        {"x": zeros(1, 8, 10, 3)},
        {"x": zeros(1, 3, 8, 10, dtype=np.float64)},
        {"y": zeros(1, 3, 8, 10)},
        {},
        zeros(1, 3, 8, 10),
        {"x": zeros(1, 3, 8, 10), "y": zeros(1)},
    ],
)
def test_a_checker_refuses_wrong_arrays_after_right_ones(later):
    check = InputChecker(IMAGE)
    check({"x": zeros(1, 3, 8, 10)})
    with pytest.raises(DataError):
        check(later)


def test_a_checker_casts_after_right_ones():
    check = InputChecker(IMAGE)
    check({"x": zeros(1, 3, 8, 10)})
    assert check({"x": zeros(1, 3, 8, 10, dtype=np.int8)})["x"].dtype == np.float32


def test_a_checker_turns_strided_arrays_after_right_ones():
    check = InputChecker(IMAGE)
    check({"x": zeros(1, 3, 8, 10)})
    assert check({"x": zeros(1, 8, 10, 3).transpose(0, 3, 1, 2)})["x"].flags.c_contiguous


def test_a_checker_takes_another_size_of_a_free_dimension():
    check = InputChecker(BATCH)
    for size in (2, 3, 2):
        check({"a": zeros(size, 2, dtype=np.int32), "b": zeros(size)})
    with pytest.raises(DataError, match="'N'"):
        check({"a": zeros(2, 2, dtype=np.int32), "b": zeros(3)})
