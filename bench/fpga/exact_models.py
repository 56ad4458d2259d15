"""Quantized models and real samples for the proofs of exact.py."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import open_samples
from ...compiler.ir.export import signature_of
from ...compiler.ir.importer import import_model
from ...compiler.manager import Manager
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ..data import data_folder, found_folder, idx_images, mel_filters
from .nets import Spec, data_of, qonnx, train

Floats = npt.NDArray[np.float32]
EXAMPLES = Path("examples")
_WIDTHS = {"w8a8": "", "w4a4": "bits=4 act_bits=4", "w2a2": "bits=2 act_bits=2"}
_MFCC_SCALE, _MFCC_ZERO = 0.5847029089927673, 83


@dataclass(frozen=True)
class Proof:
    """A model to prove.

    Attributes:
        name: of the model.
        how: it was quantized.
        data: what the samples are.
        samples: of the model's one input.
        model: makes it.
        circuit: whether it is small enough to be traced as a circuit.
    """

    name: str
    how: str
    data: str
    samples: Callable[[], Floats]
    model: Callable[[], ir.Model]
    circuit: bool = False


def digits() -> Floats:
    """Return all 1797 digits, [N, 1, 8, 8], 0 to 1."""
    from sklearn.datasets import load_digits

    images, _ = load_digits(return_X_y=True)
    return np.asarray(images / 16, np.float32).reshape(-1, 1, 8, 8)


def shared(name: str) -> Path:
    """Return a file of the shared models and data; PARED_DATA names the folder."""
    return data_folder() / name


def published(name: str) -> ir.Model:
    """Return a shared model as `pared compile` cleans it up."""
    return cleaned(import_model(shared(f"models/{name}.onnx")).model)


def cleaned(model: ir.Model) -> ir.Model:
    """Run what `pared compile` runs on a model that is quantized already."""
    passes = parse_pipeline("canonicalize,compact-constants,dead-code", PASSES, MACROS)
    return Manager().run(model, passes, Context()).model


def mnist() -> Floats:
    """Return the first 2000 test images, [N, 1, 28, 28], 0 to 1."""
    images, _ = idx_images("mnist", data_folder())
    return np.asarray(images[:2000] / np.float32(255), np.float32)


def mfcc() -> Floats:
    """Return MFCC features of 600 spoken words, and the same shifted by a frame, [1200, 49, 10, 1]."""
    x = np.load(shared("datasets/kws_gscv2_mfcc_int8.npz"))["x"]
    x = np.concatenate([x, np.roll(x, 1, axis=1)])
    return np.asarray((x.astype(np.float32) - _MFCC_ZERO) * np.float32(_MFCC_SCALE), np.float32)


def spectra(firsts: Sequence[int] = (5, 10, 15, 20)) -> Floats:
    """Return log-mel windows as the autoencoder takes them, [N, 640]: 5 frames of 128 bands, in dB.

    Of 300 recordings of spoken words, windows at some frames: the machine sounds that it was trained on
    cannot be given away.
    """
    audio = np.load(shared("datasets/kws_gscv2_audio_int16.npz"))["x"].astype(np.float64) / 32768
    return np.concatenate([_window(audio, first) for first in firsts])


def _window(audio: npt.NDArray[np.float64], first: int) -> Floats:
    starts = (first + np.arange(5)) * 512
    frames = np.stack([audio[:, s : s + 1024] for s in starts], axis=1) * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames, axis=-1)) ** 2
    return (10 * np.log10(power @ mel_filters(128).T + 1e-10)).reshape(len(audio), 640).astype(np.float32)


def quantized(source: Path, calibration: Floats, options: str) -> ir.Model:
    """Quantize with our own pass, as `pared compile --precision` does."""
    model = import_model(source).model
    signature = signature_of(model)
    samples = open_samples({signature.inputs[0].name: calibration}, signature, purpose="calibration")
    text = f"canonicalize,quantize{{{options}}},relu-into-quantizer,dead-code".replace("{}", "")
    return Manager().run(model, parse_pipeline(text, PASSES, MACROS), Context(calibration=samples)).model


def ort_quantized(source: Path, calibration: Floats, per_channel: bool) -> ir.Model:
    """Quantize with onnxruntime's own tool, QDQ, unedited."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = onnx.load(source).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.rest = iter(calibration)

        def get_next(self) -> dict[str, Floats] | None:
            sample = next(self.rest, None)
            return None if sample is None else {name: sample[None]}

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "q.onnx"
        quantize_static(
            source, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
        return cleaned(import_model(out).model)


def proofs() -> Iterator[Proof]:
    """Yield every proof, small ones first."""
    calibration = np.load(EXAMPLES / "data" / "digits_calibration.npz")["image"].astype(np.float32)
    for spec in (Spec("mlp", (128, 64), 1, 1, 1), Spec("cnn", ("c32", "p", "c64", "p"), 1, 1, 1)):
        yield _bipolar(spec)
    for name in ("digits_mlp", "digits_cnn", "digits_resnet"):
        source = EXAMPLES / "models" / f"{name}.onnx"
        for width, options in _WIDTHS.items():
            for scale in ("float", "pow2"):
                how = f"{width}, scales {'of any size' if scale == 'float' else 'powers of two'}"
                text = f"{options} scale={scale}".strip()
                yield _own(
                    name, how, "digits", digits, source, calibration, text, circuit=name == "digits_mlp"
                )
        for per_channel in (False, True):
            yield _theirs(name, "digits", digits, source, calibration, per_channel)
    if found_folder() is not None:
        yield from _of_shared_models()


def _bipolar(spec: Spec) -> Proof:
    convolutional = any(isinstance(step, str) for step in spec.layers)

    def samples() -> Floats:
        return digits() if convolutional else digits().reshape(-1, 64)

    def model() -> ir.Model:
        data = data_of(spec)
        assert len(data.train), "digits are bundled"
        return import_model(qonnx(train(spec)).SerializeToString()).model

    return Proof(
        f"digits {spec.name}, trained at 1 bit",
        "w1a1, QONNX",
        "digits",
        samples,
        model,
        circuit=not convolutional,
    )


def _own(
    name: str, how: str, data: str, samples: Callable[[], Floats], source: Path, calibration: Floats,
    text: str, *, circuit: bool = False,
) -> Proof:  # fmt: skip
    return Proof(name, how, data, samples, lambda: quantized(source, calibration, text), circuit)


def _theirs(
    name: str, data: str, samples: Callable[[], Floats], source: Path, calibration: Floats, per_channel: bool
) -> Proof:
    how = f"onnxruntime's quantize_static, {'per channel' if per_channel else 'per tensor'}"
    return Proof(name, how, data, samples, lambda: ort_quantized(source, calibration, per_channel))


def _of_shared_models() -> Iterator[Proof]:
    for name in ("tfc_1w1a_qonnx", "tfc_2w2a_qonnx", "finn_tfc_multithreshold"):
        yield Proof(
            name, "as published", "MNIST", mnist, functools.partial(published, name),
            circuit=name == "tfc_1w1a_qonnx",
        )  # fmt: skip
    kws, ad = shared("models/kws01_dscnn.onnx"), shared("models/ad01_fc_autoencoder.onnx")
    yield _own("kws01_dscnn", "int8, our quantizer", "speech commands", mfcc, kws, mfcc()[:128], "")
    for per_channel in (False, True):
        yield _theirs("kws01_dscnn", "speech commands", mfcc, kws, mfcc()[:128], per_channel)
    windows = spectra((0,))[:128]
    yield _own("ad01 autoencoder", "int8, our quantizer", "speech spectra", spectra, ad, windows, "")
    yield Proof(
        "ad01 autoencoder, int8 of MLPerf Tiny", "as published", "speech spectra", spectra,
        functools.partial(published, "ad01_fc_autoencoder_int8_qdq"),
    )  # fmt: skip
