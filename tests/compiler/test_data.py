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
        np.testing.assert_array_equal(np.concatenate([b["x"] for b in samples.batches()]), np.concatenate(first))
