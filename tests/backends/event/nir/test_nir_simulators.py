"""Exports run in Norse, SpikingJelly and Sinabs, which nobody adapted for it, and give our integers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.nir.unary import unroll
from pared.backends.event.nir.write import write_nir
from pared.backends.event.read import read
from pared.backends.event.simulate import encode, graded

SCRIPT = Path(__file__).with_name("in_simulators.py")
SIMULATORS = ("norse", "spikingjelly", "sinabs")
MISSING = [name for name in (*SIMULATORS, "torch", "nir") if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing: tests/backends/event/nir/simulators.txt"
)


def simulated(folder: Path, model: bytes, x, dt: float, *names: str) -> dict[str, np.ndarray]:
    (folder / "model.nir").write_bytes(model)
    np.savez(folder / "in.npz", x=x, dt=dt)
    files = [str(folder / name) for name in ("model.nir", "in.npz", "out.npz")]
    subprocess.run([sys.executable, str(SCRIPT), *files, *names], check=True, capture_output=True, text=True)
    with np.load(folder / "out.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("name", "bits"), [("digits_mlp", 2), ("digits_mlp", 4), ("digits_mlp", 8), ("digits_cnn", 2)]
)
def test_540_of_540_digits_give_the_same_integers_in_three_simulators(tmp_path, name, bits):
    graph, x = read(quantized(name, bits)), images(540)
    want = graded(graph, {"image": x})[graph.outputs[0].layer].reshape(540, -1)
    nir = unroll(graph).graph
    counts = encode(graph.inputs[0], x).reshape(540, 1, *nir.nodes["input"].array("shape"))
    found = simulated(tmp_path, write_nir(nir), counts.astype(np.float32), 1.0)
    equal = {key: int((y.reshape(540, -1) == want).all(axis=1).sum()) for key, y in found.items()}
    assert equal == dict.fromkeys(SIMULATORS, 540)
