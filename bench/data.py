"""The shared models and data: where they lie, and how the benchmarks read them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..compiler.errors import DataError

Array = npt.NDArray[np.number]
Floats = npt.NDArray[np.float32]

VARIABLE = "PARED_DATA"


def data_folder() -> Path:
    """Return the folder with `models/` and `datasets/` that PARED_DATA names.

    Raises:
        DataError: `bench-data-missing`.
    """
    folder = found_folder()
    if folder is None:
        raise DataError(
            "bench-data-missing", f"{VARIABLE} is not set", "point it at the folder of models and data"
        )
    return folder


def found_folder() -> Path | None:
    """Return what `data_folder` returns, None where the variable is not set."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def idx_images(name: str, folder: Path, part: str = "t10k") -> tuple[Floats, Array]:
    """Return images of MNIST or Fashion-MNIST, [N, 1, 28, 28] of 0 to 255, and labels, [N].

    Args:
        name: `mnist` or `fashion_mnist`.
        folder: of the shared data.
        part: `t10k` or `train`.
    """
    source = folder / "datasets" / name
    pixels = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return images.astype(np.float32), np.frombuffer(labels, np.uint8, offset=8)


def log_mel(audio: Array, frames: int, start: int = 4096) -> Floats:
    """Return frames of 128 bands in dB as ad01 takes them: windows of 1024 samples at 16 kHz, 512 apart.

    Args:
        audio: int16, [recordings, samples].
        frames: how many, one after the other in the result's second axis.
        start: first sample.
    """
    real = audio.astype(np.float32) / 32768
    windows = np.lib.stride_tricks.sliding_window_view(real, 1024, axis=1)[:, start::512][:, :frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(1024), axis=2)) ** 2
    decibels = 10 * np.log10(np.maximum(power @ mel_filters(128).T, 1e-10))
    return np.asarray(decibels.reshape(len(audio), -1), np.float32)


def mel_filters(bands: int) -> npt.NDArray[np.float64]:
    """Return triangular filters (HTK's mel scale) for 1024 samples at 16 kHz, [bands, 513]."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bands + 2) / 2595) - 1)
    bins = np.linspace(0, 8000, 513)[None]
    low, middle, high = (edges[i : bands + i, None] for i in range(3))
    return np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
