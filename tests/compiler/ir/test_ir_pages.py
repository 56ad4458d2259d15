"""Weights in files: read as they are, mapped only while held, put there when they take much memory."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ir_models import floats, node, proto, value

from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.pages import TransientTensor, drop_pages, spill
from pared.compiler.ir.text import fingerprint
from pared.compiler.ir.verifier import verify_graph

SIZE = 160


def model() -> ir.Model:
    from pared.compiler.ir.importer import import_model

    constants = {"w": floats(SIZE, SIZE), "b": floats(SIZE)}
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "y")]
    return import_model(proto(nodes, [value("x", (1, SIZE))], [value("y", (1, SIZE))], constants)).model


def transient(folder: Path, array: np.ndarray) -> TransientTensor:
    (folder / "w.bin").write_bytes(b"\0" * 8 + array.tobytes())
    dtype = ir.DataType.from_numpy(array.dtype)
    return TransientTensor(
        "w.bin", 8, array.nbytes, dtype, shape=ir.Shape(array.shape), name="w", base_dir=folder
    )


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_transient_tensor_gives_the_data(tmp_path: Path) -> None:
    array = floats(3, 5)
    tensor = transient(tmp_path, array)
    assert np.array_equal(tensor.numpy(), array)
    assert np.array_equal(np.asarray(tensor), array)
    assert tensor.tobytes() == array.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are listed on Linux only")
def test_a_transient_tensor_is_mapped_as_long_as_its_array_lives(tmp_path: Path) -> None:
    tensor = transient(tmp_path, floats(64, 64))
    array = tensor.numpy()
    assert mapped(tmp_path / "w.bin") == 1
    del array
    assert mapped(tmp_path / "w.bin") == 0


def test_an_array_outlives_its_tensor(tmp_path: Path) -> None:
    want = floats(64, 64)
    tensor = transient(tmp_path, want)
    gone, array = weakref.ref(tensor), tensor.numpy()
    del tensor
    gc.collect()
    assert gone() is None
    assert np.array_equal(array, want)


def test_arrays_are_readable_after_their_pages_were_dropped(tmp_path: Path) -> None:
    want = floats(64, 64)
    (tmp_path / "w.bin").write_bytes(want.tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 0, want.nbytes, ir.DataType.FLOAT, shape=ir.Shape(want.shape), name="w", base_dir=tmp_path
    )
    array = tensor.numpy()
    drop_pages(tensor)
    assert np.array_equal(array, want)


def test_spilling_changes_nothing_that_shows(tmp_path: Path) -> None:
    found = model()
    before, text = fingerprint(found), to_bytes(found)
    assert spill(found, tmp_path, least=1000) == SIZE * SIZE * 4
    verify_graph(found)
    assert isinstance(found.graph.initializers["w"].const_value, TransientTensor)
    assert isinstance(found.graph.initializers["b"].const_value, ir.Tensor)
    assert fingerprint(found) == before
    assert to_bytes(found) == text


def test_small_models_stay_in_memory(tmp_path: Path) -> None:
    assert spill(model(), tmp_path) == 0
    assert not list(tmp_path.iterdir())


def test_spilling_twice_moves_nothing_more_and_writes_to_no_file_in_use(tmp_path: Path) -> None:
    found = model()
    other = found.clone()
    spill(found, tmp_path, least=1000)
    assert spill(found, tmp_path, least=1000) == 0
    spill(other, tmp_path, least=1000)
    assert len(list(tmp_path.iterdir())) == 2
