"""Real models compiled for two GPUs without one: machine code for the smallest, kernels for all.

`python -m pared.bench.gpu.models` makes machine code of all of them, see docs/results/gpu_models.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from pared.backends.gpu.lower import one_sample
from pared.backends.gpu.module import calls_of, relax_module
from pared.bench.data import found_folder
from pared.bench.gpu.models import Case, compiled, imported, prepared

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
needs_data = pytest.mark.skipif(found_folder() is None, reason="PARED_DATA is not set")
EXAMPLES = Path(__file__).parents[3] / "examples" / "models"

SMALLEST = ("mnist_conv8", "kws01_dscnn", "kws_dnn_s", "ic01_resnet8")
# CNNs and dense models of the shared data.
OTHERS = (
    "ad01_fc_autoencoder", "ad01_fc_autoencoder_int8_qdq", "espcn_subpixel_float", "espcn_subpixel_quant",
    "finn_tfc_multithreshold", "ic01_resnet8_int8_qdq", "kws01_dscnn_int8_qdq", "kws_cnn_s", "kws_ds_cnn_s",
    "mp_face_detection_short_range", "mp_face_landmark", "mp_knift_float", "mp_palm_detection_lite",
    "resnet20_cifar10", "resnet32_cifar10", "sww_streaming_wakeword_int8_qdq", "tfc_1w1a_qonnx",
    "tfc_2w2a_qonnx", "ultraface_rfb_320", "vww01_mobilenetv1", "vww01_mobilenetv1_int8_qdq",
)  # fmt: skip
# With cells, loops and attention: taken too.
SEQUENCES = (
    "dtln_1", "dtln_2", "kws_crnn_s", "kws_gru_s", "kws_lstm_s", "magika_standard_v3_3",
    "silero_vad_16k_op15", "stories260k",
)  # fmt: skip


def _shared(name: str) -> Case:
    folder = found_folder()
    assert folder is not None, "tests with shared models are skipped without them"
    return Case(name, folder / "models" / f"{name}.onnx")


def _is_machine_code(files: object) -> bool:
    assert isinstance(files, dict)
    return all(data.startswith(b"\x7fELF") for name, data in files.items() if name.endswith(".cubin"))


@needs_nvcc
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_an_example_is_compiled_to_machine_code(precision: str, arch: str) -> None:
    _, payload = compiled(Case("digits_cnn", EXAMPLES / "digits_cnn.onnx"), precision, arch)
    assert any(name.endswith(".cubin") for name in payload.files)
    assert _is_machine_code(payload.files)


@needs_nvcc
@needs_data
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", SMALLEST)
def test_small_shared_models_are_compiled_to_machine_code(name: str, precision: str) -> None:
    for arch in ("sm_80", "sm_90"):
        _, payload = compiled(_shared(name), precision, arch)
        assert any(file.endswith(".cubin") for file in payload.files)
        assert _is_machine_code(payload.files)


@needs_data
@pytest.mark.parametrize("name", [*OTHERS, *SEQUENCES])
def test_every_shared_model_has_kernels(name: str) -> None:
    model = prepared(imported(_shared(name)), "float", "gpu-cuda-sm90")
    assert calls_of(relax_module(one_sample(model)[0])).steps


@needs_data
def test_no_shared_model_is_left_out() -> None:
    folder = found_folder()
    assert folder is not None, "skipped without shared models"
    every = {path.stem for path in (folder / "models").glob("*.onnx")}
    assert every == {*SMALLEST, *OTHERS, *SEQUENCES}
