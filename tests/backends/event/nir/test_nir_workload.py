"""What an export costs: our counts and NeuroBench's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.nir.plan import make_plan
from pared.backends.event.nir.records import Graph, Node
from pared.backends.event.nir.unary import unroll
from pared.backends.event.nir.workload import workload
from pared.backends.event.nir.write import write_nir
from pared.backends.event.read import read
from pared.backends.event.simulate import encode

pytest.importorskip("h5py")
SCRIPT = Path(__file__).with_name("in_neurobench.py")
MISSING = [name for name in ("neurobench", "torch", "nir") if importlib.util.find_spec(name) is None]


def test_operations_are_counted_by_hand():
    nodes = {
        "input": Node("Input", {"shape": np.array([2])}),
        "w": Node("Linear", {"weight": np.float32([[1, 0], [2, 3], [0, 4]])}),
        "if": Node("IF", {"r": np.ones(3), "v_threshold": np.full(3, 1.5)}),
        "u": Node("Linear", {"weight": np.float32([[1, 1, 0]])}),
        "output": Node("Output", {"shape": np.array([1])}),
    }
    edges = (("input", "w"), ("w", "if"), ("if", "u"), ("u", "output"))
    found = workload(make_plan(Graph(nodes, edges)), np.float32([[[3, 0], [0, 0]]]))
    # Input 3 meets two weights; two neurons fire, both of whose weights in u are not 0; nothing in step 2.
    assert (found.effective_macs, found.effective_acs, found.dense) == (2, 2, 18)
    assert found.activation_sparsity == pytest.approx(4 / 6)


@pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing: tests/backends/event/nir/simulators.txt"
)
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_neurobench_counts_the_same_in_an_export(tmp_path, name):
    graph = read(quantized(name, 2))
    nir = unroll(graph).graph
    plan = make_plan(nir)
    x = encode(graph.inputs[0], images(32)).reshape(32, *plan.shape_in).astype(np.float32)
    (tmp_path / "model.nir").write_bytes(write_nir(nir))
    np.savez(tmp_path / "in.npz", x=x)
    files = [str(tmp_path / file) for file in ("model.nir", "in.npz", "out.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads((tmp_path / "out.json").read_text()), workload(plan, x[:, None])
    counted = theirs["SynapticOperations"]
    assert counted["Dense"] == ours.dense
    assert counted["Effective_MACs"] + counted["Effective_ACs"] == ours.effective_macs + ours.effective_acs
    assert counted["Effective_ACs"] == ours.effective_acs
    assert theirs["ActivationSparsity"] == pytest.approx(ours.activation_sparsity)
