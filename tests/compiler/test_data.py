"""Samples: every source gives the same samples, every kind of bad data its own reason code."""

from __future__ import annotations

import gc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pared.compiler.backend import Port, Signature
from pared.compiler.data import Samples, Source, open_samples
from pared.compiler.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3, 4, 6)).astype(np.float32)
Y = np.arange(5)


def sig(*ports: tuple[str, str, tuple[int | str, ...]]) -> Signature:
    return Signature(tuple(Port(*p) for p in ports), ())


FIXED = sig(("x", "FLOAT", (1, 3, 4, 6)))
BATCH = sig(("x", "FLOAT", ("n", 3, 4, 6)))
TWO = sig(("a", "FLOAT", (1, 2)), ("b", "INT32", (1, 3)))


def reason(source: Source, signature: Signature = FIXED) -> str:
    with pytest.raises(DataError) as caught:
        open_samples(source, signature, purpose="calibration")
    assert caught.value.next_step
    return caught.value.reason


def opened(source: Source, signature: Signature = FIXED) -> Samples:
    return open_samples(source, signature, purpose="calibration")


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def sources(folder: Path) -> dict[str, Source]:
    (folder / "npys").mkdir()
    np.save(folder / "npys" / "x.npy", X)
    np.save(folder / "npys" / "y.npy", Y)
    np.savez_compressed(folder / "small.npz", x=X, y=Y)
    np.savez(folder / "fortran.npz", x=np.asfortranarray(X), y=Y)
    return {
        "npz": npz(folder / "d.npz", x=X, y=Y),
        "compressed npz": folder / "small.npz",
        "fortran npz": str(folder / "fortran.npz"),
        "folder": folder / "npys",
        "mapping": {"x": X, "y": Y},
        "one-shot generator": ({"x": x, "y": y} for x, y in zip(X, Y, strict=True)),
        "samples with the leading 1": [{"x": x[None], "y": y} for x, y in zip(X, Y, strict=True)],
        "batched dicts": [{"x": X[:2], "y": Y[:2]}, {"x": X[2:], "y": Y[2:]}],
        "whole shape behind the sample axis": {"x": X[:, None], "y": Y},
    }


@pytest.fixture(scope="module")
def every_source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    return {kind: opened(s) for kind, s in sources(tmp_path_factory.mktemp("sources")).items()}


def test_every_source_delivers_the_same_samples(every_source: dict[str, Samples]) -> None:
    for samples in every_source.values():
        assert len(samples) == 5
        got = [b["x"] for b in samples.batches()]
        assert all(g.shape == (1, 3, 4, 6) and g.dtype == np.float32 for g in got)
        np.testing.assert_array_equal(np.concatenate(got), X)
        np.testing.assert_array_equal(samples.labels, Y)


def test_every_source_of_the_same_content_has_the_same_digest(every_source: dict[str, Samples]) -> None:
    assert len({samples.digest for samples in every_source.values()}) == 1


def test_batches_can_be_iterated_again(every_source: dict[str, Samples]) -> None:
    for samples in every_source.values():
        first = [b["x"].copy() for b in samples.batches()]
        np.testing.assert_array_equal(
            np.concatenate([b["x"] for b in samples.batches()]), np.concatenate(first)
        )


def test_a_symbolic_leading_dimension_permits_batches(tmp_path: Path) -> None:
    samples = opened(npz(tmp_path / "d.npz", x=X), BATCH)
    assert samples.batchable
    got = [b["x"] for b in samples.batches(2)]
    assert [len(g) for g in got] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(got), X)


def test_a_fixed_leading_dimension_refuses_batches() -> None:
    samples = opened({"x": X})
    with pytest.raises(DataError) as caught:
        next(samples.batches(2))
    assert caught.value.reason == "batch-fixed"


def test_a_fixed_leading_dimension_above_one_takes_that_many_rows() -> None:
    samples = opened({"x": X[:4], "y": Y[:4]}, sig(("x", "FLOAT", (2, 3, 4, 6))))
    got = [b["x"] for b in samples.batches()]
    assert len(samples) == len(got) == 2
    np.testing.assert_array_equal(got[1], X[2:4])


def test_rows_that_do_not_fill_a_fixed_batch_are_refused() -> None:
    assert reason({"x": X}, sig(("x", "FLOAT", (2, 3, 4, 6)))) == "calibration-shape"


def test_a_model_input_without_dimensions_takes_one_number_per_sample() -> None:
    samples = opened({"sr": np.array([8, 16])}, sig(("sr", "INT64", ())))
    assert [b["sr"].shape for b in samples.batches()] == [(), ()]
    assert [int(b["sr"]) for b in samples.batches()] == [8, 16]


def test_several_inputs_stay_in_step(tmp_path: Path) -> None:
    a, b = RNG.normal(size=(4, 2)).astype(np.float32), np.arange(12, dtype=np.int32).reshape(4, 3)
    samples = opened(npz(tmp_path / "d.npz", b=b, a=a), TWO)
    for i, batch in enumerate(samples.batches()):
        np.testing.assert_array_equal(batch["a"], a[i : i + 1])
        np.testing.assert_array_equal(batch["b"], b[i : i + 1])


def test_head_has_the_first_samples_and_its_own_digest() -> None:
    samples = opened({"x": X, "y": Y})
    head = samples.head(2)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in head.batches()]), X[:2])
    np.testing.assert_array_equal(head.labels, Y[:2])
    assert head.digest != samples.digest
    assert samples.head(99) is samples


def test_head_cuts_the_last_batch() -> None:
    assert [len(b["x"]) for b in opened({"x": X}, BATCH).head(3).batches(2)] == [2, 1]


@pytest.mark.parametrize("change", ["value", "labels", "order"])
def test_the_digest_follows_the_content(change: str) -> None:
    x, y = X.copy(), Y.copy()
    if change == "value":
        x[3, 0, 0, 0] += 1
    if change == "labels":
        y[0] = 7
    if change == "order":
        x = x[::-1]
    assert opened({"x": x, "y": y}).digest != opened({"x": X, "y": Y}).digest


@pytest.mark.parametrize("name", ["arr_0", "x"])
def test_one_unnamed_array_is_the_only_input(tmp_path: Path, name: str) -> None:
    samples = opened(npz(tmp_path / "d.npz", **{name: X, "y": Y}), sig(("image", "FLOAT", (1, 3, 4, 6))))
    assert len(samples) == 5
    assert any("only input 'image'" in note for note in samples.notes)


def test_an_npy_file_is_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "whatever.npy", X)
    assert len(opened(tmp_path / "whatever.npy")) == 5


def test_an_unnamed_array_beside_another_is_refused() -> None:
    assert reason({"x": X, "z": X}, sig(("image", "FLOAT", (1, 3, 4, 6)))) == "calibration-wrong-name"


def test_an_unnamed_array_for_two_inputs_is_refused() -> None:
    assert reason({"x": X}, TWO) == "calibration-wrong-name"


def test_arrays_that_are_no_input_are_noted() -> None:
    samples = opened({"x": X, "names": np.array(list("abcde"))})
    assert any("'names'" in note for note in samples.notes)


def test_text_labels_do_not_hide_numeric_ones() -> None:
    samples = opened({"x": X, "labels": np.array(["cat", "dog"]), "y": Y})
    np.testing.assert_array_equal(samples.labels, Y)


def test_a_model_input_named_like_labels_is_an_input() -> None:
    samples = opened({"y": X}, sig(("y", "FLOAT", (1, 3, 4, 6))))
    assert samples.labels is None


@pytest.mark.parametrize(
    ("have", "want"),
    [("float64", "FLOAT"), ("int32", "INT64"), ("uint8", "FLOAT"), ("int64", "INT32"), (">f4", "FLOAT")],
)
def test_harmless_casts_are_done_and_noted(have: str, want: str) -> None:
    samples = opened({"x": np.arange(6).reshape(3, 2).astype(have)}, sig(("x", want, (1, 2))))
    delivered = np.concatenate([b["x"] for b in samples.batches()])
    np.testing.assert_array_equal(delivered, np.arange(6).reshape(3, 2))
    assert any("cast to" in note for note in samples.notes)


@pytest.mark.parametrize(
    ("array", "want"),
    [
        (np.ones((3, 2), np.float32), "INT32"),
        (np.ones((3, 2), np.float32), "BOOL"),
        (np.ones((3, 2), np.complex64), "FLOAT"),
        (np.full((3, 2), "a"), "FLOAT"),
        (np.array([[0, 1], [2, 300]]), "UINT8"),
        (np.array([[0, 1], [2, -1]], np.int8), "UINT8"),
        (np.array([[2**24 + 1, 0]]), "FLOAT"),
        (np.ones((3, 2), np.float32), "STRING"),
    ],
)
def test_lossy_casts_are_refused(array: np.ndarray, want: str) -> None:
    assert reason({"x": array}, sig(("x", want, (1, 2)))) == "calibration-dtype"


def test_a_refused_value_names_its_sample() -> None:
    with pytest.raises(DataError, match="sample 1 contains a int64 value"):
        opened({"x": np.array([[0, 1], [2, 300]])}, sig(("x", "UINT8", (1, 2))))


@pytest.mark.parametrize(("value", "code"), [(np.nan, "calibration-nan"), (np.inf, "calibration-inf")])
def test_non_finite_values_are_refused(value: float, code: str, tmp_path: Path) -> None:
    x = X.copy()
    x[3, 1, 2, 0] = value
    assert reason({"x": x}) == code
    assert reason(npz(tmp_path / "d.npz", x=x)) == code
    with pytest.raises(DataError, match="sample 3 "):
        opened({"x": x})


def test_a_float64_beyond_float32_is_refused_as_inf() -> None:
    assert reason({"x": np.full((2, 2), 1e300)}, sig(("x", "FLOAT", (1, 2)))) == "calibration-inf"


@pytest.mark.parametrize("lead", [1, "n"])
def test_channels_last_for_channels_first_is_named(lead: int | str) -> None:
    signature = sig(("x", "FLOAT", (lead, 3, 4, 6)))
    assert reason({"x": np.moveaxis(X, 1, -1)}, signature) == "calibration-layout"


def test_channels_first_for_channels_last_is_named() -> None:
    assert reason({"x": X}, sig(("x", "FLOAT", (1, 4, 6, 3)))) == "calibration-layout"


def test_a_wrong_shape_shows_both() -> None:
    with pytest.raises(DataError, match=r"\[1, 3, 4, 6\].*\[5, 3, 4, 5\]"):
        opened({"x": X[..., :5]})
    assert reason({"x": X[..., :5]}) == "calibration-shape"


def test_missing_axes_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"reshape to \(-1, \[1, 4, 4\]\)"):
        opened({"x": np.zeros((5, 4, 4), np.float32)}, sig(("x", "FLOAT", (1, 1, 4, 4))))


def test_an_array_without_a_sample_axis_is_refused() -> None:
    assert reason({"x": np.float32(1)}, sig(("x", "FLOAT", ()))) == "calibration-shape"


def test_a_mistyped_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean fingerprint:0"):
        opened({"fingerprint": X}, sig(("fingerprint:0", "FLOAT", (1, 3, 4, 6))))
    assert reason({"fingerprint": X}) == "calibration-wrong-name"


def test_a_missing_input_is_named() -> None:
    assert reason({"a": np.zeros((4, 2), np.float32)}, TWO) == "calibration-missing-input"


def test_inputs_with_different_counts_are_refused() -> None:
    arrays = {"a": np.zeros((4, 2), np.float32), "b": np.zeros((3, 3), np.int32)}
    assert reason(arrays, TWO) == "calibration-counts"


@pytest.mark.parametrize("labels", [Y[:4], np.array([0, 1, 2, 3, np.nan])])
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray) -> None:
    assert reason({"x": X, "y": labels}) == "calibration-labels"


@pytest.mark.parametrize("kind", ["no samples", "no arrays", "empty folder", "no dicts", "empty npz"])
def test_empty_data_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "e.npz", "w"):
        pass
    empty: dict[str, Source] = {
        "no samples": {"x": X[:0]},
        "no arrays": {},
        "empty folder": tmp_path / "folder",
        "no dicts": [],
        "empty npz": tmp_path / "e.npz",
    }
    assert reason(empty[kind]) == "calibration-empty"


def test_a_file_without_samples_is_empty_data(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X[:0])
    assert reason(tmp_path / "x.npy") == "calibration-empty"


def test_calibration_data_that_never_change_are_noted() -> None:
    flat = {"x": np.zeros_like(X)}
    (note,) = opened(flat).notes
    assert note == "input 'x' is the same number throughout the calibration data"
    assert open_samples(flat, FIXED, purpose="test").notes == ()
    assert opened({"x": X}).notes == ()


def test_a_setting_may_be_the_same_in_all_calibration_data() -> None:
    rate = sig(("rate", "FLOAT", (1, 1)), ("kind", "INT32", (1, 2)))
    assert opened({"rate": np.ones((5, 1), np.float32), "kind": np.ones((5, 2), np.int32)}, rate).notes == ()


@pytest.mark.parametrize("rows", [X[:0], np.full_like(X, np.nan), X[:, :2], X.astype("S3")])
def test_what_is_wrong_with_a_file_names_the_file_once(tmp_path: Path, rows: np.ndarray) -> None:
    path = npz(tmp_path / "samples.npz", x=rows)
    with pytest.raises(DataError) as caught:
        open_samples(path, FIXED, purpose="calibration")
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.message.count(str(path)) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert reason(tmp_path / "no.npz") == "calibration-missing-file"


@pytest.mark.parametrize("what", ["csv", "number", "list of lists"])
def test_other_formats_are_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    source = {"csv": tmp_path / "x.csv", "number": 3, "list of lists": [[1.0, 2.0]]}[what]
    assert reason(source) == "calibration-format"  # type: ignore[arg-type]


def test_pickled_arrays_are_refused_unread(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    np.savez(tmp_path / "d.npz", x=objects)
    np.save(tmp_path / "x.npy", objects)
    assert reason(tmp_path / "d.npz") == "calibration-pickled"
    assert reason(tmp_path / "x.npy") == "calibration-pickled"
    assert reason({"x": objects}) == "calibration-pickled"
    assert reason([{"x": objects}]) == "calibration-pickled"


def test_a_file_that_is_no_zip_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"not a zip")
    assert reason(tmp_path / "d.npz") == "calibration-corrupt"


def test_a_truncated_npz_is_corrupt(tmp_path: Path) -> None:
    whole = npz(tmp_path / "d.npz", x=X).read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    assert reason(tmp_path / "d.npz") == "calibration-corrupt"


def test_a_flipped_byte_in_an_npz_is_corrupt(tmp_path: Path) -> None:
    raw = bytearray(npz(tmp_path / "d.npz", x=X).read_bytes())
    at = raw.index(X.tobytes()[:64])
    raw[at] ^= 1
    (tmp_path / "d.npz").write_bytes(raw)
    assert reason(tmp_path / "d.npz") == "calibration-corrupt"


def test_an_npz_header_that_promises_more_than_is_there_is_corrupt(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    lying = (tmp_path / "x.npy").read_bytes().replace(b"(5, 3", b"(9, 3")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", lying)
    assert reason(tmp_path / "d.npz") == "calibration-corrupt"


def test_a_truncated_npy_is_corrupt(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.concatenate([X] * 8))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-100])
    assert reason(tmp_path / "x.npy") == "calibration-corrupt"


@pytest.mark.parametrize("shape", ["(-5, -3, 4, 6)", "(5, 3, 4, 6", "(" * 300, "(5, 3, 4, 'a')"])
def test_a_damaged_npy_header_is_corrupt(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(1000).encode() + b"\n"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + X.tobytes()
    (tmp_path / "x.npy").write_bytes(raw)
    assert reason(tmp_path / "x.npy") == "calibration-corrupt"


def test_an_empty_npy_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"")
    assert reason(tmp_path / "x.npy") == "calibration-corrupt"


def test_samples_of_an_iterable_with_different_shapes_are_refused() -> None:
    signature = sig(("x", "FLOAT", (1, "t")))
    ragged = [{"x": np.zeros(3, np.float32)}, {"x": np.zeros(4, np.float32)}]
    assert reason(ragged, signature) == "calibration-shape"


def test_the_spool_is_removed_with_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = opened({"x": x} for x in X)
    assert list(tmp_path.iterdir())
    del samples
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_the_spool_is_removed_when_the_iterable_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": X[0]}
        raise RuntimeError("camera unplugged")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="unplugged"):
        opened(failing())
    assert not list(tmp_path.iterdir())


def test_a_spool_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, raw: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr("pathlib.Path.open", lambda *_: Full())
    assert reason([{"x": X[0]}]) == "calibration-spool"


def test_opened_samples_are_passed_through() -> None:
    samples = opened({"x": X})
    assert opened(samples) is samples
