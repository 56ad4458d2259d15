"""Code for other instruction sets: run here where the CPU has them, under qemu-user where it has not."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from test_lower_read import canonical, quantized_conv, samples

import pared
from pared.backends.cpu.native import codegen, engine
from pared.backends.cpu.native.isa import Isa, isa_of
from pared.backends.cpu.native.lower import lower
from pared.backends.cpu.native.planner import plan
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.errors import TargetError
from pared.compiler.machine import find_machine
from pared.targets import load_target

LESSER = ("cpu-x86-64", "cpu-x86-avx2", "cpu-x86-avx512-vnni")
QEMU, ARM_GCC, ARM_OBJDUMP = "qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"
ARM_ROOT = "/usr/aarch64-linux-gnu"
HOST = Path(pared.__file__).parents[1] / "examples" / "embed_c" / "host.c"


def isa_named(target):
    isa = isa_of(load_target(target))
    assert isinstance(isa, Isa)
    return isa


def written(model, isa, folder):
    program = lower(model, isa)
    for name, content in codegen.build(program, plan(program), isa).items():
        (folder / name).write_bytes(content)
    return folder


def run_here(model, inputs, target, folder):
    isa = isa_named(target)
    if missing := isa.missing_on(find_machine()):
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    options = {"isa": " ".join([isa.arch, *isa.features])}
    return engine.load(written(model, isa, folder), options, 1).run(inputs)


def saturating(channels=32):
    """Products of 255 and weights of one sign: sums of two are beyond 16 bits."""
    rng = np.random.default_rng(1)
    model = quantized_conv(
        rng, channels=channels, outs=17, group=1, kernel=3, stride=1, tail="", signed=False
    )
    return model, {"q": np.full((1, channels, 7, 5), 255, np.uint8)}


@pytest.mark.parametrize("target", LESSER)
def test_pairs_of_products_beyond_16_bits_do_not_saturate(target, tmp_path):
    model, inputs = saturating()
    for name, want in evaluate(model, inputs).items():
        np.testing.assert_array_equal(run_here(model, inputs, target, tmp_path)[name], want)


@pytest.mark.parametrize("target", LESSER)
@pytest.mark.parametrize("precision", [None, "int8"])
def test_an_example_runs_as_the_reference(target, precision, tmp_path):
    model = canonical("digits_cnn", precision, samples("digits_cnn", 8) if precision else None)
    inputs = samples("digits_cnn", 1)
    got, bounds = run_here(model, inputs, target, tmp_path), derive_bound(model, [inputs], seed=0)
    for name, want in evaluate(model, inputs).items():
        limit = bounds[name].atol + bounds[name].rtol_of_max * np.abs(want).max()
        assert np.abs(got[name] - want).max() <= limit


def arm_folder(tmp_path):
    """An int8 example compiled for ARM."""
    if shutil.which(ARM_GCC) is None:
        pytest.skip(f"needs {ARM_GCC}")
    model = canonical("digits_resnet", "int8", samples("digits_resnet", 8))
    return model, written(model, isa_named("cpu-aarch64"), tmp_path)


def test_int8_code_for_arm_has_dot_products(tmp_path):
    _, folder = arm_folder(tmp_path)
    ran = subprocess.run([ARM_OBJDUMP, "-d", folder / "model.so"], capture_output=True, text=True, check=True)
    assert "sdot" in ran.stdout


def test_code_for_arm_runs_under_qemu_as_the_reference(tmp_path):
    if shutil.which(QEMU) is None:
        pytest.skip(f"needs {QEMU}")
    model, folder = arm_folder(tmp_path)
    inputs = samples("digits_resnet", 1)
    (x,) = inputs.values()
    x.tofile(folder / "input.bin")
    build = [ARM_GCC, "-O2", f"-I{folder}", "-o", "host", HOST, "model.so", f"-Wl,-rpath,{folder}"]
    subprocess.run(build, cwd=folder, check=True)
    command = [QEMU, "-L", ARM_ROOT, folder / "host", folder / "input.bin"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (want,) = evaluate(model, inputs).values()
    bound = next(iter(derive_bound(model, [inputs], seed=0).values()))
    got = np.array(shown.split(), np.float32)
    assert np.abs(got - want.ravel()).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


@pytest.mark.parametrize("feature", ["avx512_vnni", "avx2", "fma"])
def test_an_artifact_names_the_feature_that_a_cpu_lacks(feature, tmp_path, monkeypatch):
    machine = find_machine()
    if feature not in machine.cpu_features:
        pytest.skip(f"this CPU has no {feature}")
    lesser = tuple(name for name in machine.cpu_features if name != feature)
    (tmp_path / "model.so").write_bytes(b"never mapped")
    monkeypatch.setattr(engine, "find_machine", lambda: replace(machine, cpu_features=lesser))
    options = {"isa": " ".join([machine.arch, *machine.cpu_features])}
    with pytest.raises(TargetError, match=f"needs {feature}, which this CPU") as caught:
        engine.load(tmp_path, options, 1)
    assert caught.value.reason == "cpu-feature-missing"
