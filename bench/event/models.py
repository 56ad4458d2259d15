"""Models and samples of the event benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...compiler.backend import Array
from ...compiler.data import open_samples
from ...compiler.ir.export import signature_of
from ...compiler.ir.importer import import_model
from ...compiler.manager import Manager
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ..data import found_folder, idx_images, log_mel

EXAMPLES = Path("examples")
_WIDTHS = {8: "inputs=int8", 4: "bits=4 act_bits=4 inputs=int8", 2: "bits=2 act_bits=2 inputs=int8"}


@dataclass(frozen=True, eq=False)
class Source:
    """A float model with what it is fed.

    Attributes:
        name: for tables.
        path: of the model.
        input: name of its input.
        samples: [samples, ...], float32.
        calibration: the same, for ranges.
        labels: classes of the samples; empty where there are none.
    """

    name: str
    path: Path
    input: str
    samples: Array
    calibration: Array
    labels: Array


def quantized(source: Source, bits: int) -> ir.Model:
    """Return the model quantized as `--precision` does it, with integer inputs."""
    model = import_model(source.path).model
    data = {source.input: source.calibration}
    samples = open_samples(data, signature_of(model), purpose="calibration")
    text = f"canonicalize,balance,quantize{{{_WIDTHS[bits]}}},short-scales,relu-into-quantizer,dead-code"
    return Manager().run(model, parse_pipeline(text, PASSES, MACROS), Context(calibration=samples)).model


def sources(fashion: Path | None, count: int) -> Iterator[Source]:
    """Yield what can be had here, with `count` samples each."""
    yield digits("digits_mlp", count)
    yield digits("digits_cnn", count)
    data = found_folder()
    if data is None:
        return
    yield mnist(data, count)
    if fashion is not None:
        yield fashion_cnn(data, fashion, count)
    yield ad01(data, count)
    yield kws01(data, count)


def digits(name: str, count: int) -> Source:
    """Return a model of the examples; beyond the 668 images there are, images moved by one pixel follow."""
    test = np.load(EXAMPLES / "data" / "digits_test.npz")
    calibration = np.load(EXAMPLES / "data" / "digits_calibration.npz")["image"]
    images = test["image"].astype(np.float32)
    moved = [np.roll(images, (0, shift), axis=(2, 3)) for shift in (1, -1)]
    every = np.concatenate([images, calibration.astype(np.float32), *moved])[:count]
    path = EXAMPLES / "models" / f"{name}.onnx"
    return Source(name, path, "image", every, calibration, test["labels"][:count])


def mnist(data: Path, count: int) -> Source:
    """Return the two-layer MNIST net."""
    images, labels = idx_images("mnist", data)
    calibration = idx_images("mnist", data, "train")[0][:64]
    path = data / "models" / "mnist_conv8.onnx"
    return Source("mnist_conv8", path, "Input3", images[:count], calibration, labels[:count])


def fashion_cnn(data: Path, made: Path, count: int) -> Source:
    """Return the net of bench/train_fashion.py."""
    images, labels = idx_images("fashion_mnist", data)
    calibration = idx_images("fashion_mnist", data, "train")[0][:64]
    path = made / "fashion_cnn.onnx"
    images, calibration = (part / np.float32(255) for part in (images[:count], calibration))
    return Source("fashion_cnn", path, "image", images, calibration, labels[:count])


def kws01(data: Path, count: int) -> Source:
    """Return the keyword spotter of MLPerf Tiny; beyond what there is, spectra one frame later follow."""
    stored = np.load(data / "datasets" / "kws_gscv2_mfcc_int8.npz")
    real = ((stored["x"].astype(np.float32) - 83) * 0.5847029089927673).astype(np.float32)
    moved = np.roll(real, 1, axis=1)
    path = data / "models" / "kws01_dscnn.onnx"
    every = np.concatenate([real, moved])[:count]
    return Source("kws01_dscnn", path, "serving_default_input_1:0", every, real[-64:], stored["y"][:count])


def ad01(data: Path, count: int) -> Source:
    """Return the autoencoder of MLPerf Tiny with five log-mel frames of 128 bands a sample."""
    audio = np.load(data / "datasets" / "kws_gscv2_audio_int16.npz")["x"]
    starts = range(1024, 11264, 2560)  # what does not overlap within a second
    frames = np.concatenate([log_mel(audio, 5, start) for start in starts])
    path = data / "models" / "ad01_fc_autoencoder.onnx"
    return Source("ad01_fc_autoencoder", path, "input_1", frames[:count], frames[-64:], np.zeros(0))
