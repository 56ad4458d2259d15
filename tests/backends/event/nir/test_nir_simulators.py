"""NIR runs in Norse, SpikingJelly and Sinabs, which nobody adapted for it, and gives our numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.nir.plan import make_plan
from pared.backends.event.nir.read import read_nir
from pared.backends.event.nir.stepper import Stepper
from pared.backends.event.nir.unary import unroll
from pared.backends.event.nir.write import write_nir
from pared.backends.event.read import read
from pared.backends.event.simulate import encode, graded

SCRIPT = Path(__file__).with_name("in_simulators.py")
SIMULATORS = ("norse", "spikingjelly", "sinabs")
MISSING = [name for name in (*SIMULATORS, "torch", "nir", "h5py") if importlib.util.find_spec(name) is None]
DATA = Path(os.environ["PARED_DATA"]) if "PARED_DATA" in os.environ else None

DIGITS = [("digits_mlp", 2), ("digits_mlp", 4), ("digits_cnn", 2)]
# cnn_sinabs: Norse's Flatten takes the batch for a dimension; Sinabs fires several times per step where the
# specification says once. braille: Sinabs knows no CubaLIF.
FILES = {"braille_noDelay_bias_zero": ("norse", "spikingjelly"), "cnn_sinabs": ("spikingjelly",)}

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing: tests/backends/event/nir/simulators.txt"
)


@dataclass
class Job:
    """A network, what it is fed, [samples, steps, ...], and what it should give."""

    model: bytes
    x: np.ndarray
    want: np.ndarray
    names: tuple[str, ...]
    dt: float = 1.0


def exported(name: str, bits: int) -> Job:
    graph, x = read(quantized(name, bits)), images(540)
    want = graded(graph, {"image": x})[graph.outputs[0].layer].reshape(540, 1, -1)
    nir = unroll(graph).graph
    counts = encode(graph.inputs[0], x).reshape(540, 1, *nir.nodes["input"].array("shape"))
    return Job(write_nir(nir), counts.astype(np.float32), want, SIMULATORS)


def from_file(path: Path, names: tuple[str, ...]) -> Job:
    plan = make_plan(read_nir(path))
    x = (np.random.default_rng(3).random((3, 20, *plan.shape_in)) < 0.4).astype(np.float32)
    return Job(path.read_bytes(), x, Stepper(plan).run(x), names, plan.dt)


@pytest.fixture(scope="module")
def jobs() -> dict[str, Job]:
    found = {f"{name}{bits}": exported(name, bits) for name, bits in DIGITS}
    for name, names in FILES.items() if DATA is not None else ():
        found[name] = from_file(DATA / "models" / "snn" / f"{name}.nir", names)
    return found


@pytest.fixture(scope="module")
def simulated(jobs, tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Run all jobs in one process."""
    folder, orders = tmp_path_factory.mktemp("simulated"), []
    for name, job in jobs.items():
        (folder / f"{name}.nir").write_bytes(job.model)
        np.savez(folder / f"{name}_in.npz", x=job.x)
        files = {"model": f"{name}.nir", "source": f"{name}_in.npz", "to": f"{name}_out.npz"}
        paths = {key: str(folder / file) for key, file in files.items()}
        orders.append(paths | {"dt": job.dt, "names": job.names})
    (folder / "jobs.json").write_text(json.dumps(orders))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "jobs.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for name in jobs:
        with np.load(folder / f"{name}_out.npz") as file:
            found[name] = {key: file[key] for key in file.files}
    return found


@pytest.mark.parametrize(("name", "bits"), DIGITS)
def test_540_of_540_digits_give_the_same_integers_in_three_simulators(jobs, simulated, name, bits):
    job = jobs[f"{name}{bits}"]
    found = simulated[f"{name}{bits}"]
    equal = {
        key: int((y.reshape(job.want.shape) == job.want).all(axis=(1, 2)).sum()) for key, y in found.items()
    }
    assert equal == dict.fromkeys(SIMULATORS, 540)


@pytest.mark.skipif(DATA is None, reason="PARED_DATA is not set")
@pytest.mark.parametrize("name", FILES)
def test_real_networks_spike_as_our_stepper_says(jobs, simulated, name):
    assert jobs[name].want.sum() > 10
    for key, y in simulated[name].items():
        assert np.array_equal(y, jobs[name].want), key
