from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from pared.compiler.errors import TargetError
from pared.compiler.machine import Machine
from pared.compiler.target import Target
from pared.targets import load_target, target_names

HEAD = 'name = "mine"\ndescription = "a test"\nbackend = "cpu"\nengines = ["ort"]\n'


def target(tmp_path: Path, text: str, name: str = "mine.toml") -> Target:
    path = tmp_path / name
    path.write_text(text)
    return load_target(path)


def machine(arch: str, *features: str) -> Machine:
    return Machine("Linux", arch, "some CPU", features, 1, 1, None, False, "no meter", None)


def node(op: str, dtype: str = "float", shape: str = "1,1,4,4", attributes: str = "") -> ir.Node:
    graph = f"g ({dtype}[{shape}] x) => (float[N] y) {{ y = {op}{attributes}(x) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {graph}')
    return ir.from_proto(proto).graph.node(0)


@pytest.mark.parametrize("name", target_names())
def test_every_file_is_named_as_its_target(name):
    assert load_target(name).name == name


def test_digests_differ():
    assert len({load_target(name).digest for name in target_names()}) == len(target_names())


def test_the_default_is_measurable_here():
    assert load_target("cpu").runs_here(machine("riscv64")).ok


def test_json_round_trip_keeps_the_target():
    before = load_target("cpu-x86-avx512-vnni")
    after = Target.from_json(before.to_json())
    assert (after, after.digest) == (before, before.digest)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("cpu", 8), ("cpu-aarch64", 8), ("cpu-generic", 7), ("cpu-x86-64", 7), ("cpu-x86-avx2", 7),
        ("cpu-x86-avx512-vnni", 8),
    ],
)  # fmt: skip
def test_avx2_weights_keep_to_seven_bits(name, bits):
    assert load_target(name).numerics.exact_weight_bits == bits


def test_seven_bits_cannot_saturate_a_pair_sum_but_eight_can():
    assert 2 * 255 * 63 < 2**15 - 1
    assert -2 * 255 * 64 >= -(2**15)
    assert 2 * 255 * 127 > 2**15 - 1


def test_other_architecture_does_not_run_here():
    verdict = load_target("cpu-aarch64").runs_here(machine("x86_64"))
    assert not verdict.ok
    assert "this machine is x86_64" in verdict.reason


def test_missing_feature_is_named():
    verdict = load_target("cpu-x86-avx512-vnni").runs_here(machine("x86_64", "avx512f", "avx512bw"))
    assert verdict.reason.endswith("needs avx512_vnni, which this CPU lacks")


def test_a_link_of_none_is_not_reachable():
    assert "not reachable" in load_target("cpu-generic").runs_here(machine("x86_64")).reason


def test_unknown_name_gives_the_nearest():
    with pytest.raises(TargetError, match="did you mean cpu-aarch64") as caught:
        load_target("cpu-arch64")
    assert caught.value.reason == "target-unknown"


def test_missing_file_is_refused():
    with pytest.raises(TargetError, match="cannot read target file"):
        load_target("nowhere/mine.toml")


def test_unknown_key_names_file_key_and_neighbour(tmp_path):
    wanted = r"mine\.toml: unknown key 'numerics\.acumulator_bits'.*accumulator_bits"
    with pytest.raises(TargetError, match=wanted) as caught:
        target(tmp_path, HEAD + "[numerics]\nacumulator_bits = 32\n")
    assert caught.value.reason == "target-key"


def test_unknown_section_names_the_sections(tmp_path):
    with pytest.raises(TargetError, match=r"unknown key 'memry' .*did you mean memory"):
        target(tmp_path, HEAD + "[memry]\nweights_bytes = 1\n")


def test_missing_key_is_named(tmp_path):
    with pytest.raises(TargetError, match="key 'backend' is missing"):
        target(tmp_path, 'name = "mine"\ndescription = "d"\nengines = ["ort"]\n')


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("[numerics]\naccumulator_bits = '32'", "numerics.accumulator_bits"),
        ("[numerics]\nrounding = 'up'", "numerics.rounding"),
        ("[memory]\nweights_bytes = 0", "memory.weights_bytes"),
        ("[energy.mac]\npicojoules = 0.2\nnode_nm = 45\nsource = ''", "energy.mac.source"),
    ],
)
def test_wrong_value_names_its_key(tmp_path, line, key):
    with pytest.raises(TargetError, match=f"'{key}'") as caught:
        target(tmp_path, HEAD + line)
    assert caught.value.reason == "target-value"


@pytest.mark.parametrize("text", ["name =", "\x00", "a = 1\na = 2"])
def test_what_is_not_toml_is_refused(tmp_path, text):
    with pytest.raises(TargetError, match="is not TOML"):
        target(tmp_path, text)


def test_extends_overrides_key_by_key(tmp_path):
    mine = target(tmp_path, 'extends = "cpu"\nname = "mine"\n[numerics]\npair_sum_bits = 16\n')
    assert (mine.numerics.pair_sum_bits, mine.numerics.accumulator_bits) == (16, 32)
    assert mine.engines == load_target("cpu").engines


def test_extends_takes_a_file_beside(tmp_path):
    (tmp_path / "base.toml").write_text(HEAD + "[memory]\nweights_bytes = 9\n")
    assert target(tmp_path, 'extends = "base.toml"\nname = "other"\n').memory.weights_bytes == 9


def test_extends_goes_one_level(tmp_path):
    with pytest.raises(TargetError, match="itself extends 'cpu-generic'") as caught:
        target(tmp_path, 'extends = "cpu-x86-avx2"\nname = "mine"\n')
    assert caught.value.reason == "target-extends"


def test_extends_of_nothing_known_is_refused(tmp_path):
    with pytest.raises(TargetError, match="did you mean cpu-x86-avx2"):
        target(tmp_path, 'extends = "cpu-x86-avx"\nname = "mine"\n')


def test_no_op_entries_limit_nothing():
    assert load_target("cpu").allows(node("Relu")).ok


def test_op_entries_limit_the_operators(tmp_path):
    small = target(tmp_path, HEAD + '[[ops]]\nop = "Relu"\n')
    assert small.allows(node("Relu")).ok
    assert small.allows(node("Tanh")).reason == "target mine has no Tanh; it has Relu"


def test_op_entries_limit_dtypes_and_rank(tmp_path):
    small = target(tmp_path, HEAD + '[[ops]]\nop = "*"\ndtypes = ["FLOAT"]\nmax_rank = 3\n')
    assert small.allows(node("Relu", shape="1,2,3")).ok
    assert "'x' has 4" in small.allows(node("Relu")).reason
    assert "'x' is INT8" in small.allows(node("Relu", "int8", "1,2,3")).reason


def test_op_entries_limit_attributes(tmp_path):
    small = target(
        tmp_path, HEAD + '[[ops]]\nop = "MaxPool"\n[ops.attributes]\nkernel_shape = [[2, 2], [3, 3]]\n'
    )
    assert small.allows(node("MaxPool", attributes="<kernel_shape=[2,2]>")).ok
    assert "kernel_shape" in small.allows(node("MaxPool", attributes="<kernel_shape=[4,4]>")).reason


def test_two_entries_for_an_operator_are_alternatives(tmp_path):
    entry = '[[ops]]\nop = "Relu"\ndtypes = ["{}"]\n'
    small = target(tmp_path, HEAD + entry.format("INT8") + entry.format("FLOAT"))
    assert small.allows(node("Relu")).ok
