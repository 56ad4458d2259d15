"""Streams of frames by what changed (sigma-delta): products and time beside whole frames.

    PARED_DATA=… python -m pared.bench.event.frames --fashion DIR

Predicted: products fall with the share of counts that change, layer by layer; time falls less, as every layer
looks through its input and through the pixels that see a change.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...backends.event.build import build, features_of
from ...backends.event.delta import DeltaGraph
from ...backends.event.graph import EventGraph, Integers
from ...backends.event.native import NativeGraph
from ...backends.event.read import read
from ...backends.event.simulate import encode
from ...compiler.backend import Array
from ...targets import load_target
from ..data import data_folder, log_mel
from ..meter import compare_latency, pinned
from ..results import Page
from .models import Source, ad01, fashion_cnn, quantized

REMARK = """Time gains less than products: layers look through pixels for changes, small layers are dense in
a few microseconds, and where most changes the rest is computed whole (a step then costs some Python more)."""
HEADINGS = (
    "stream", "model", "frames", "inputs that change", "counts that change", "products, changes only",
    "products, chosen", "changes us", "whole us", "whole / changes", "unequal integers",
)  # fmt: skip
ABOUT = """`python -m pared.bench.event.frames --fashion DIR`. int8 models, frame after frame with the state
kept. "inputs that change", "counts that change" (all layers): share whose integer is not the last frame's.
"products": products of a weight with a change, as a share of those of dense execution; "chosen" with what
"changes us" runs, which computes layers, or frames, whole where that is faster. "changes" adds changes to
kept accumulators, "whole" runs every frame anew, both choosing by layer; medians of interleaved rounds, one
pinned core, for the whole stream divided by its frames.
Unequal integers: counts of all layers after every frame beside those of
the whole frame. Streams of 64 frames: still camera, a picture with a bright square of a fifth of its side
that moves by a pixel a frame; noisy camera, the same with one grey level of noise on 2 % of the pixels;
panning camera, the picture moves by a pixel every fourth frame; pictures, one test image after another,
nothing in common; audio, log-mel frames of one second of speech, a window of 64 ms moved by 0.5 or 8 ms a
frame."""


def audio(data: Path, hop: int) -> Array:
    """Return log-mel inputs of ad01 [frames, 640], `hop` samples apart."""
    recorded = np.load(data / "datasets" / "kws_gscv2_audio_int16.npz")["x"][:1]
    starts = range(4096, 4096 + 64 * hop, hop)
    return np.concatenate([np.asarray(log_mel(recorded, 5, start)) for start in starts])


def still(picture: Array, noisy: bool) -> Array:
    """Return 64 frames of a picture [1, height, width] of 0 to 1 with a square that moves over it."""
    rng = np.random.default_rng(0)
    side = picture.shape[1] // 5
    frames: npt.NDArray[np.float32] = np.repeat(np.asarray(picture[None], np.float32), 64, axis=0)
    for index, frame in enumerate(frames):
        x = index % (picture.shape[2] - side)
        frame[:, 8 : 8 + side, x : x + side] = 0.9
    if noisy:
        noise = (rng.random(frames.shape) < 0.02) * rng.choice(np.array([-1.0, 1.0]), frames.shape) / 255
        return np.asarray(np.clip(frames + noise, 0, 1), np.float32)
    return frames


def panning(picture: Array) -> Array:
    """Return 64 frames of a picture that moves."""
    return np.stack([np.roll(picture, index // 4, axis=1) for index in range(64)])


def resnet(data: Path, pictures: Array) -> Source:
    """Return the image classifier of MLPerf Tiny on pictures made larger and grey in its three channels."""
    large = np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2)))
    grey = np.asarray(np.repeat(large, 3, axis=1), np.float32)
    channels_last = np.ascontiguousarray(grey.transpose(0, 2, 3, 1)) * np.float32(255)
    path = data / "models" / "ic01_resnet8.onnx"
    return Source("ic01_resnet8", path, "input_1", channels_last, channels_last, np.zeros(0))


def measure(page: Page, library: Path, name: str, source: Source, frames: Array) -> None:
    """Add a row."""
    graph = read(quantized(source, 8))
    entry = graph.inputs[0]
    counts = encode(entry, frames)
    unequal, moved, every, work = _walk(graph, library, counts)
    deltas, native = DeltaGraph(graph, library), NativeGraph(graph, library)
    runs: dict[str, Callable[[], object]] = {
        "changes": lambda: [deltas.step({entry.population: frame}) for frame in counts],
        "whole": lambda: native.run({entry.population: counts}),
    }
    found = compare_latency(runs, rounds=7, iterations=70, limit=4.0)
    us = {key: float(np.median(ms)) * 1e3 / len(counts) for key, ms in found.round_medians_ms.items()}
    inputs = float(np.mean(counts[1:] != counts[:-1]))
    page.add(
        name, source.name, len(counts), f"{inputs:.1%}", f"{moved / every:.1%}",
        *(f"{share:.1%}" for share in work), f"{us['changes']:.0f}", f"{us['whole']:.0f}",
        f"{found.ratio('whole', 'changes').median:.2f}", unequal,
    )  # fmt: skip


def _walk(graph: EventGraph, library: Path, counts: Integers) -> tuple[int, int, int, list[float]]:
    """Return unequal integers, changed counts among how many, and shares of dense products."""
    native = NativeGraph(graph, library)
    ways = [DeltaGraph(graph, library, mode) for mode in ("events", "auto")]
    dense = DeltaGraph(graph, library, "dense")
    dense.step({graph.inputs[0].population: counts[0]})
    whole = dense.totals()[1]
    name, unequal, moved, every = graph.inputs[0].population, 0, 0, 0
    last: dict[str, Integers] = {}
    for frame in counts:
        native.run({name: frame[None]})
        now = {layer.name: native.counts(layer.name) for layer in graph.layers}
        for way in ways:
            way.step({name: frame})
            unequal += sum(int(np.count_nonzero(found != way.counts(key))) for key, found in now.items())
        if last:
            moved += sum(int(np.count_nonzero(found != last[key])) for key, found in now.items())
            every += sum(found.size for found in now.values())
        last = now
    return unequal, moved, every, [way.totals()[1] / (whole * len(counts)) for way in ways]


def cameras(pictures: Array) -> dict[str, Array]:
    """Return streams [64, 1, height, width] by name."""
    return {
        "still camera": still(pictures[0], noisy=False),
        "noisy camera": still(pictures[0], noisy=True),
        "panning camera": panning(pictures[0]),
        "pictures": pictures[:64],
    }


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results/event_frames.md"))
    given = parser.parse_args()
    data = data_folder()
    page = Page(given.out, "Frame streams by what changed", ABOUT, HEADINGS)
    garments, machine = fashion_cnn(data, given.fashion, 64), ad01(data, 64)
    with tempfile.TemporaryDirectory() as folder, pinned(1):
        library = Path(folder) / "events.so"
        library.write_bytes(build(features_of(load_target("event-cpu"))) or b"")
        for name, frames in cameras(garments.samples).items():
            measure(page, library, name, garments, frames)
            classifier = resnet(data, frames)
            measure(page, library, name, classifier, classifier.samples)
        measure(page, library, "audio, 0.5 ms", machine, audio(data, 8))
        measure(page, library, "audio, 8 ms", machine, audio(data, 128))
    page.remark(REMARK)


if __name__ == "__main__":
    main()
