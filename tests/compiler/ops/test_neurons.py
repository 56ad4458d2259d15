from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pared.compiler.errors import UnsupportedOp
from pared.compiler.ops import expand_custom_ops, neurons, register
from pared.compiler.ops.common import PARED_DOMAIN
from pared.compiler.ops.neuron_op import OP


def model(kind: str, constants: int, states: int, spare: int = 0) -> ir.Model:
    """Return a model of one neuron with so many constant parameters, the time step among them."""
    register()
    names = ["x", *(f"s{index}" for index in range(states)), *(f"p{index}" for index in range(spare))]
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3])) for name in names
    ]
    fixed = [
        ir.Value(name=f"c{i}", const_value=ir.tensor(np.float64(1 + i), name=f"c{i}"))
        for i in range(constants)
    ]
    node = ir.node(
        OP, [*inputs, *fixed], {"kind": kind}, domain=PARED_DOMAIN, num_outputs=1 + states, name="n"
    )
    graph = ir.Graph(
        inputs, node.outputs, nodes=[node], initializers=fixed, opset_imports={"": 21, PARED_DOMAIN: 1}
    )
    return ir.Model(graph, ir_version=10)


def test_a_neuron_with_constant_parameters_becomes_standard_operators():
    found = model("LIF", 6, 1)
    assert expand_custom_ops(found) == 1
    assert {node.domain for node in found.graph} == {""}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("Izhikevich", 6, 1), "is of kind 'Izhikevich'"),
        (("LIF", 5, 1), "has 7 inputs, it needs 8"),
        (("LIF", 5, 1, 1), "a parameter tau that is not constant"),
    ],
)
def test_what_is_no_neuron_is_refused(given, text):
    with pytest.raises(UnsupportedOp, match=text) as caught:
        expand_custom_ops(model(*given))
    assert caught.value.reason == "neuron-kind"


def test_a_leaky_neuron_follows_its_equation_for_small_steps():
    given = {"tau": np.array(0.01), "r": np.array(2.0), "v_leak": np.array(0.5)}
    dt, x, v = 1e-5, np.ones(1, np.float32), np.zeros(1, np.float32)
    for _ in range(1000):
        _, v = neurons.step("LI", dt, given, x, (v,))
    # After tau seconds 1 - 1/e of the way to v_leak + r * x; Euler errs by dt / (2 tau) of the rest.
    assert v[0] == pytest.approx(2.5 * (1 - np.exp(-1)), rel=1e-3)


def test_thresholds_are_passed_not_met():
    given = {"r": np.array(1.0), "v_threshold": np.array(1.0), "v_reset": np.array(-0.25)}
    z, v = neurons.step("IF", 1.0, given, np.float32([1.0, 1.0625]), (np.zeros(2, np.float32),))
    assert (z.tolist(), v.tolist()) == ([0, 1], [1.0, -0.25])


def test_lava_decays_towards_zero_and_fires_at_its_threshold():
    given = {"iDecay": np.array(2048), "vDecay": np.array(4096), "vThMant": np.array(3)}
    state = (np.zeros(3, np.int64), np.array([-3, 3, 128]))
    z, v, i = neurons.step(neurons.LAVA, 1.0, given, np.float32([0, 0, 2]), state)
    assert i.tolist() == [-1, 1, 192]
    assert (z.tolist(), v.tolist()) == ([0, 0, 1], [-1, 1, 0])


def test_lava_currents_wrap_and_voltages_saturate_as_24_bits_do():
    given = {"iDecay": np.array(0), "vDecay": np.array(0), "vThMant": np.array(2**17)}
    state = (np.array([1 - 2**23]), np.array([2**23 - 1]))
    _, v, i = neurons.step(neurons.LAVA, 1.0, given, np.float32([1]), state)
    assert (i.tolist(), v.tolist()) == ([63 - 2**23], [1 - 2**23])


def test_delays_are_whole_steps_of_their_own_per_element():
    given, queue = {"delay": np.array([0, 1.6, 2.0])}, np.zeros((3, 1, 3), np.float32)
    seen = []
    for value in (1, 2, 3):
        y, queue = neurons.step(neurons.DELAY, 1.0, given, np.full((1, 3), value, np.float32), (queue,))
        seen.append(y[0].tolist())
    assert seen == [[1, 0, 0], [2, 0, 0], [3, 1, 1]]


@pytest.mark.parametrize("delay", [-1.0, 1e9])
def test_delays_that_no_queue_holds_are_refused(delay):
    with pytest.raises(ValueError, match="delays of"):
        neurons.delay_steps(np.array([delay]), 1e-3)
