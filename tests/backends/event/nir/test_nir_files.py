"""NIR and lava files: read, written, refused."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pared.backends.event.nir import lava
from pared.backends.event.nir.hdf5 import read_tree, write_tree
from pared.backends.event.nir.plan import make_plan
from pared.backends.event.nir.read import from_tree, read_nir
from pared.backends.event.nir.records import Graph, Node, same
from pared.backends.event.nir.stepper import Stepper
from pared.backends.event.nir.write import write_nir
from pared.compiler.errors import ModelError, UnsupportedOp
from pared.compiler.ir.importer import import_model

h5py = pytest.importorskip("h5py")
DATA = Path(os.environ["PARED_DATA"]) if "PARED_DATA" in os.environ else None
needs_data = pytest.mark.skipif(DATA is None, reason="PARED_DATA is not set")


def ends(inputs: int = 3, outputs: int = 3) -> dict[str, Node | Graph]:
    return {
        "input": Node("Input", {"shape": np.array([inputs])}),
        "output": Node("Output", {"shape": np.array([outputs])}),
    }


def chain(*nodes: Node, inputs: int = 3, outputs: int = 3, **metadata) -> Graph:
    names = [f"n{index}" for index in range(len(nodes))]
    path = ["input", *names, "output"]
    parts = ends(inputs, outputs) | dict(zip(names, nodes, strict=True))
    return Graph(parts, tuple(pairwise(path)), metadata)


def neuron(kind: str = "IF", **values) -> Node:
    given = {"r": np.ones(3), "v_threshold": np.ones(3)} | values
    return Node(kind, {name: value for name, value in given.items() if value is not None})


def tree(**changes) -> dict:
    node = {"type": "IF", "r": np.ones(3), "v_threshold": np.ones(3)} | changes
    node = {name: value for name, value in node.items() if value is not None}
    shape = np.array([3])
    parts = {
        "input": {"type": "Input", "shape": shape},
        "a": node,
        "output": {"type": "Output", "shape": shape},
    }
    edges = np.array([["input", "a"], ["a", "output"]])
    return {"version": "1.0.8", "node": {"type": "NIRGraph", "nodes": parts, "edges": edges}}


def test_what_is_written_is_read_again_to_the_bit(tmp_path):
    inner = Graph(ends() | {"a": neuron(r=np.float32([1, 2, 3]))}, (("input", "a"), ("a", "output")))
    weight = np.float32(np.random.default_rng(0).normal(size=(3, 3)))
    graph = Graph(
        ends() | {"w": Node("Linear", {"weight": weight}, {"note": "ü", "k": 3}), "part": inner},
        (("input", "w"), ("w", "part"), ("part", "output")),
        {"dt": 1e-3},
    )
    (tmp_path / "a.nir").write_bytes(write_nir(graph))
    found = read_nir(tmp_path / "a.nir")
    assert same(found, graph)
    assert write_nir(found) == write_nir(graph)
    assert [step.name for step in make_plan(found).steps] == ["w", "part.a"]


def test_a_changed_bit_is_no_longer_the_same():
    a = chain(neuron(r=np.array([1.0, 1.0, 1.0])))
    assert not same(a, chain(neuron(r=np.array([1.0, 1.0, np.nextafter(1.0, 2)]))))
    assert not same(a, chain(neuron(r=np.float32([1, 1, 1]))))


def test_the_nir_package_reads_what_is_written(tmp_path):
    nir = pytest.importorskip("nir")
    weight = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    (tmp_path / "a.nir").write_bytes(write_nir(chain(Node("Linear", {"weight": weight}), neuron())))
    found = nir.read(tmp_path / "a.nir")
    assert np.array_equal(found.nodes["n0"].weight, weight)
    assert set(found.edges) == {("input", "n0"), ("n0", "n1"), ("n1", "output")}


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"type": "Izhikevich"}, "nir-node", r"node 'a' is a Izhikevich, which is not known"),
        ({"v_threshold": None}, "nir-malformed", r"a IF needs v_threshold"),
        ({"tau": np.ones(3)}, "nir-malformed", r"a IF has no parameter 'tau'"),
        ({"r": np.array([1, np.nan, 1])}, "nir-malformed", r"r of IF has values that are not finite"),
        ({"r": np.ones(4)}, "nir-malformed", r"parameters of IF differ in shape"),
        ({"r": "much"}, "nir-malformed", r"r of IF is the text 'much'"),
        ({"r": np.ones(0), "v_threshold": np.ones(0)}, "nir-malformed", r"r of IF is empty"),
        ({"type": None}, "nir-malformed", r"a node without a type"),
    ],
)
def test_a_wrong_node_is_refused_by_name(changes, reason, text):
    with pytest.raises((ModelError, UnsupportedOp), match=text) as caught:
        from_tree(tree(**changes), "x.nir")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("version", "ok"), [("0.2.0", True), ("1.0.8", True), ("1.1.0.dev3", True), ("2.0", False)]
)
def test_versions_up_to_one_are_read_and_others_refused(version, ok):
    content = tree() | {"version": version}
    if ok:
        from_tree(content, "x.nir")
        return
    with pytest.raises(ModelError, match=r"says version 2\.0, this pared reads NIR 0\.x and 1\.x") as caught:
        from_tree(content, "x.nir")
    assert caught.value.reason == "nir-version"


def test_other_hdf5_and_loose_edges_are_refused():
    with pytest.raises(ModelError, match="no group `node`"):
        from_tree({"layer": {}}, "x.nir")
    content = tree()
    content["node"]["edges"] = np.array([["input", "b"]])
    with pytest.raises(ModelError, match="there is no node 'b'"):
        from_tree(content, "x.nir")


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (chain(neuron(), inputs=4, outputs=4), r"node 'n0': r of shape \(3,\) cannot meet \(4,\)"),
        (chain(neuron(), outputs=2), r"\(3,\) arrives, it says \(2,\)"),
        (chain(Node("Linear", {"weight": np.ones((3, 4))})), r"cannot take \(3,\)"),
        (chain(neuron(), dt=0.0), r"dt = 0\.0"),
        (Graph(ends(), ()), "nothing arrives at it"),
    ],
)
def test_shapes_that_do_not_meet_are_refused(graph, text):
    with pytest.raises(ModelError, match=text) as caught:
        make_plan(graph)
    assert caught.value.reason == "nir-malformed"


def test_images_beyond_memory_are_refused():
    one, far = np.array([1, 1]), np.array([2**30, 2**30])
    values = {"weight": np.ones((1, 1, 1, 1)), "stride": one, "padding": far, "dilation": one, "groups": 1}
    parts = ends() | {"c": Node("Conv2d", values | {"bias": np.ones(1)})}
    parts["input"] = Node("Input", {"shape": np.array([1, 2, 2])})
    with pytest.raises(ModelError, match="its output has shape"):
        make_plan(Graph(parts, (("input", "c"), ("c", "output"))))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "a.nir")
    with pytest.raises(ModelError) as caught:
        import_model(tmp_path / "a.nir")
    assert caught.value.reason == "not-a-file"


def test_two_inputs_are_refused():
    parts = ends() | {"more": Node("Input", {"shape": np.array([3])})}
    with pytest.raises(UnsupportedOp, match="2 nodes Input"):
        make_plan(Graph(parts, (("input", "output"), ("more", "output"))))


def _hostile(path: Path, kind: str) -> None:
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["node"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "soft link":
            file["node"] = h5py.SoftLink("/node")
        elif kind == "bomb":
            file.create_dataset("node", (1 << 40,), "f8", chunks=(1 << 16,), compression="gzip")
        elif kind == "outside":
            file.create_dataset("node", (4,), "f8", external=[("/etc/passwd", 0, 32)])
        elif kind == "deep":
            group = file
            for _ in range(40):
                group = group.create_group("g")
        elif kind == "compound":
            file.create_dataset("node", (1,), [("a", "f8"), ("b", "i4")])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("external link", "is a link"),
        ("soft link", "is a link"),
        ("bomb", "claims 8796093022208 bytes"),
        ("outside", "lies outside the file"),
        ("deep", "more than 16 deep"),
        ("compound", "has type"),
    ],
)
def test_hostile_hdf5_is_refused(tmp_path, kind, text):
    _hostile(tmp_path / "a.nir", kind)
    with pytest.raises(ModelError, match=text) as caught:
        read_tree(tmp_path / "a.nir")
    assert caught.value.reason == "hdf5-damaged"


def test_a_folder_named_pared_beside_does_not_hide_the_reader(tmp_path, monkeypatch):
    path = tmp_path / "n.nir"
    path.write_bytes(write_tree({"version": np.float64(1.0)}))
    (tmp_path / "pared").mkdir()
    (tmp_path / "pared" / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert read_tree(path) == {"version": 1.0}


def test_a_file_that_is_cut_off_or_something_else_is_refused(tmp_path):
    content = write_nir(chain(neuron()))
    for wrong in (content[: len(content) // 2], b"", b"PK\x03\x04", content[:8]):
        (tmp_path / "a.nir").write_bytes(wrong)
        with pytest.raises(ModelError) as caught:
            import_model(tmp_path / "a.nir")
        assert caught.value.reason == "hdf5-damaged"
    with pytest.raises(ModelError) as caught:
        import_model(tmp_path / "b.nir")
    assert caught.value.reason == "model-not-found"


def test_a_file_that_the_library_does_not_survive_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.nir").write_bytes(write_nir(chain(neuron())))
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: run([sys.executable, "-c", crash], **k))
    with pytest.raises(ModelError, match="the library does not survive it"):
        read_tree(tmp_path / "a.nir")


def lava_tree(**changes) -> dict:
    cuba = {"type": "CUBA", "iDecay": 1024, "vDecay": 128, "vThMant": 10, "refDelay": 1, "gradedSpike": False}
    layer = {"type": "dense", "weight": np.float32([[3, -2, 1], [0, 5, 7]]), "neuron": cuba}
    layer |= {name: value for name, value in changes.items() if name in ("type", "weight")}
    layer["neuron"] = cuba | {
        name: value for name, value in changes.items() if name not in ("type", "weight")
    }
    return {"layer": {"0": layer}}


def test_a_lava_file_is_read(tmp_path):
    (tmp_path / "a.net").write_bytes(write_tree(lava_tree()))
    model = import_model(tmp_path / "a.net").model
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["input", "output"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "conv"}, "lava-layer"),
        ({"gradedSpike": True}, "lava-layer"),
        ({"refDelay": 3}, "lava-layer"),
        ({"iDecay": 5000}, "lava-malformed"),
        ({"vThMant": 1 << 17}, "lava-malformed"),
        ({"weight": np.float32([[0.5]])}, "lava-malformed"),
        ({"weight": 3}, "lava-malformed"),
        ({"vThMant": "high"}, "lava-malformed"),
    ],
)
def test_lava_layers_of_other_kinds_are_refused(changes, reason):
    with pytest.raises((ModelError, UnsupportedOp)) as caught:
        lava.from_tree(lava_tree(**changes), Path("x.net"))
    assert caught.value.reason == reason


@needs_data
def test_a_lava_network_gives_the_spikes_that_lava_recorded():
    assert DATA is not None
    given, wanted = (
        np.load(DATA / "datasets" / "lava_oxford" / f"{name}.npy") for name in ("input", "ground_truth")
    )
    x, want = np.zeros((1, 1890, 200), np.float32), np.zeros((1890, 200), np.float32)
    x[0, np.rint(given[:, 2]).astype(int), given[:, 0].astype(int)] = 1
    want[wanted[:, 2].astype(int), wanted[:, 0].astype(int)] = 1
    found = Stepper(make_plan(lava.read_lava(DATA / "models" / "snn" / "lava_oxford.net"))).run(x)[0]
    # Each of its two layers passes spikes on one step later.
    assert want.sum() == 10178
    assert np.array_equal(found[:-2], want[2:])


@needs_data
@pytest.mark.parametrize("name", ["braille_noDelay_bias_zero", "cnn_sinabs"])
def test_real_files_survive_the_way_through_us(tmp_path, name):
    assert DATA is not None
    found = read_nir(DATA / "models" / "snn" / f"{name}.nir")
    (tmp_path / "a.nir").write_bytes(write_nir(found))
    assert same(read_nir(tmp_path / "a.nir"), found)


def test_the_command_line_exits_with_2(tmp_path, monkeypatch, capsys):
    from pared.compiler.cli.app import main

    (tmp_path / "a.nir").write_bytes(write_tree(tree(type="Izhikevich")))
    monkeypatch.setattr(sys, "argv", ["pared", "inspect", "-m", str(tmp_path / "a.nir")])
    assert main() == 2
    assert "error[nir-node]" in capsys.readouterr().err
