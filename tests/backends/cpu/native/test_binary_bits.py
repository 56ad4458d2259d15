import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.backends.cpu.native.kernels.bits import Code, pack, unpack, words_of


@given(st.sampled_from(Code), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_unpack_undoes_pack(code, channels, seed):
    values = np.random.default_rng(seed).choice(code.values, (2, 3, channels))
    words = pack(values, code)
    assert words.shape == (2, 3, words_of(channels), code.planes)
    np.testing.assert_array_equal(unpack(words, channels, code), values)


@pytest.mark.parametrize("code", Code)
def test_bits_beyond_the_last_channel_are_zero(code):
    words = pack(np.full((1, 5), code.values[-1]), code)
    assert (words < 2**5).all()


def test_channel_c_is_bit_c_of_the_first_word():
    values = -np.ones((40,), np.int8)
    values[[0, 33]] = 1
    np.testing.assert_array_equal(pack(values, Code.BINARY)[:, 0], [1, 2])


def test_a_value_that_the_code_lacks_is_refused():
    with pytest.raises(ValueError, match="binary holds"):
        pack(np.zeros((3,), np.int8), Code.BINARY)
