"""Canonical text and fingerprint: what changes them and what does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from ir_models import floats, if_model, node, proto

from pared.compiler.ir import walk
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.text import canonical_text, fingerprint


def model(weight: np.ndarray | None = None) -> ir.Model:
    nodes = [node("MatMul", "x w", "h"), node("LeakyRelu", "h", "y", alpha=0.25)]
    return import_model(proto(nodes, constants={"w": floats(4, 4) if weight is None else weight})).model


def test_the_text_of_a_small_model() -> None:
    nodes = [node("Add", "x w", "h"), node("LeakyRelu", "h", "y", alpha=0.25)]
    imported = import_model(proto(nodes, constants={"w": np.array([1, 2, 3, 4], np.float32)})).model
    assert canonical_text(imported) == (
        "opsets: onnx=21\n"
        "inputs: $x: FLOAT[1,4]\n"
        "v0: FLOAT[1,4] = Add($x, FLOAT[4](1.0,2.0,3.0,4.0))\n"
        "v1: FLOAT[1,4] = LeakyRelu(v0) {alpha=0.25}\n"
        "outputs: $y = v1: FLOAT[1,4]\n"
    )


def test_names_do_not_show_in_the_text() -> None:
    renamed = model()
    renamed.graph[0].name, renamed.graph[0].outputs[0].name = "other", "another"
    renamed.graph.initializers["w"].name = "v"
    assert canonical_text(renamed) == canonical_text(model())


def test_names_of_inputs_and_outputs_show() -> None:
    renamed = model()
    renamed.graph.outputs[0].name = "z"
    assert canonical_text(renamed) != canonical_text(model())


def test_big_constants_show_as_digests() -> None:
    assert canonical_text(model()) != canonical_text(model(floats(4, 4, seed=1) * 2))


def test_bodies_show_indented() -> None:
    text = canonical_text(import_model(if_model()).model)
    assert "    v2: FLOAT[1,4] = Abs(v0)" in text.splitlines()


def test_clones_have_one_fingerprint() -> None:
    one = model()
    assert fingerprint(one.clone()) == fingerprint(one)


def _new_weight(m: ir.Model) -> None:
    m.graph.initializers["w"].const_value = ir.tensor(walk.read_only(floats(4, 4, seed=9)), name="w")


CHANGES: dict[str, Callable[[ir.Model], None]] = {
    "weight": _new_weight,
    "attribute": lambda m: m.graph[1].attributes.add(ir.AttrFloat32("alpha", 0.5)),
    "operator": lambda m: setattr(m.graph[1], "op_type", "Elu"),
    "value name": lambda m: setattr(m.graph[0].outputs[0], "name", "k"),
    "node name": lambda m: setattr(m.graph[0], "name", "k"),
    "wiring": lambda m: m.graph[1].replace_input_with(0, m.graph.inputs[0]),
    "input shape": lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape([2, 4])),
    "opset": lambda m: m.opset_imports.update({"": 22}),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_change_changes_the_fingerprint(what: str) -> None:
    one = model()
    before = fingerprint(one)
    CHANGES[what](one)
    assert fingerprint(one) != before


def test_a_change_in_a_body_changes_the_fingerprint() -> None:
    one = import_model(if_model()).model
    before = fingerprint(one)
    next(one.graph.subgraphs())[0].op_type = "Sign"
    assert fingerprint(one) != before


def _swap_branches(m: ir.Model) -> None:
    one = m.graph[1]
    then, other = one.attributes["then_branch"].as_graph(), one.attributes["else_branch"].as_graph()
    one.attributes["then_branch"] = ir.AttrGraph("then_branch", other)
    one.attributes["else_branch"] = ir.AttrGraph("else_branch", then)


@pytest.mark.parametrize("render", [fingerprint, canonical_text])
def test_swapped_branches_show(render: Callable[[ir.Model], str]) -> None:
    one = import_model(if_model()).model
    before = render(one)
    _swap_branches(one)
    assert render(one) != before


def test_metadata_does_not_change_the_fingerprint() -> None:
    one = model()
    before = fingerprint(one)
    one.graph[0].metadata_props["pared.origin"] = "a,b"
    one.graph[0].outputs[0].shape = None
    assert fingerprint(one) == before


def test_weights_are_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pared.compiler.ir import digest

    one = model()
    fingerprint(one)
    monkeypatch.setattr(digest, "_digest", lambda tensor: pytest.fail("digested again"))
    fingerprint(one.clone())
