"""Files of a payload: in memory or on disk, read and put in place alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.compiler.backend import Payload


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    data = tmp_path / "made" / "weights"
    data.parent.mkdir()
    data.write_bytes(b"w")
    return Payload("ort", {"model.onnx": b"g", "model.onnx.data": data}, {})


def test_a_file_is_read_wherever_it_lies(payload: Payload) -> None:
    assert [payload.read(name) for name in payload.files] == [b"g", b"w"]


def test_files_get_their_names_and_none_is_left_behind(payload: Payload, tmp_path: Path) -> None:
    places = payload.move_to(tmp_path)
    assert places == {name: tmp_path / name for name in ("model.onnx", "model.onnx.data")}
    assert [path.read_bytes() for path in places.values()] == [b"g", b"w"]
    assert not list((tmp_path / "made").iterdir())
