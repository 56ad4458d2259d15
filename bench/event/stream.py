"""Ten million events through a network of five layers: events per second, memory, cost by number of events.

    python -m pared.bench.event.stream [--events 10000000]

Predicted: an event costs its place in a frame (sorting into windows and counting, about 30 ns in NumPy) and
its share of a window: about 40 us of Python and what the network takes for a frame. With 1000 events a window
10 million events take 10 000 windows, at 150 us 1.5 s, and 0.3 s of counting: 5 million events per second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from ...backends.event.build import build, features_of
from ...backends.event.delta import DeltaGraph
from ...backends.event.read import read
from ...backends.event.streams.stream import Stream
from ...compiler.backend import Array
from ...compiler.data import open_samples
from ...compiler.ir.export import signature_of
from ...compiler.ir.importer import import_model
from ...compiler.manager import Manager
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ...compiler.streams import EVENT, Events
from ...targets import load_target
from ..meter import pinned
from ..results import Page

SIDE = 34
PIECE = 1 << 16
# Products of a dense frame, borders included, as the kernels do them.
DENSE = 17 * 17 * 16 * 18 + 81 * 32 * 144 + 81 * 32 * 288 + 2592 * 128 + 1280
HEADINGS = (
    "events", "per window", "windows", "seconds", "events/s", "ns/event", "us/window",
    "products/event", "share of dense", "resident MB, first", "last",
)  # fmt: skip
ABOUT = """`python -m pared.bench.event.stream`. Synthetic events of a 34x34 sensor (a bar that
moves, with noise: a third of the events anywhere), made piece by piece of 65536 events outside the measured
time, through `feed`: clock, range checks, windows, and a network of five layers (3x3 convolutions
2->16->32->32, the first two of stride 2, dense 128 and 10; int8, random weights, 1.53 million products
densely). One pinned core, one thread, wall time, one run each. "products/event": products of a weight with a
count or a change, counted by the kernels; "share of dense": of those that dense execution of the same windows
does. "resident": memory of the process after the first piece and at the end."""


def network() -> ir.Model:
    """Return the float net, weights drawn as He et al. do."""
    rng = np.random.default_rng(0)
    nodes, arrays, name = [], {}, "events"
    for index, (before, after, stride) in enumerate(((2, 16, 2), (16, 32, 2), (32, 32, 1))):
        arrays[f"w{index}"] = rng.normal(0, (2 / (9 * before)) ** 0.5, (after, before, 3, 3))
        nodes.append(
            helper.make_node(
                "Conv",
                [name, f"w{index}"],
                [f"c{index}"],
                name=f"c{index}",
                kernel_shape=[3, 3],
                pads=[1] * 4,
                strides=[stride] * 2,
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"r{index}"))
        name = f"r{index}"
    nodes.append(helper.make_node("Flatten", [name], ["flat"], name="flat"))
    name = "flat"
    for index, (before, after) in enumerate(((32 * 81, 128), (128, 10))):
        arrays[f"d{index}"] = rng.normal(0, (2 / before) ** 0.5, (before, after))
        made = ("hidden", "scores")[index]
        nodes.append(helper.make_node("Gemm", [name, f"d{index}"], [made], name=made))
        if not index:
            nodes.append(helper.make_node("Relu", [made], ["active"], name="active"))
            name = "active"
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("events", TensorProto.FLOAT, ["n", 2, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    return import_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ).model


def quantized(frames: Array) -> ir.Model:
    """Return the net in int8, calibrated on frames of events."""
    model = network()
    samples = open_samples({"events": frames}, signature_of(model), purpose="calibration")
    text = "canonicalize,balance,quantize{inputs=int8},relu-into-quantizer,dead-code"
    return Manager().run(model, parse_pipeline(text, PASSES, MACROS), Context(calibration=samples)).model


def recording(count: int, rate: int, seed: int = 0) -> Iterator[Events]:
    """Yield events, `rate` per millisecond, a piece at a time."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, PIECE):
        some = min(PIECE, count - first)
        made = np.empty(some, EVENT)
        made["t"] = np.arange(first, first + some) * 1000 // rate
        bar = made["t"] // 2000 % SIDE
        noise = rng.random(some) < 1 / 3
        made["x"] = np.where(noise, rng.integers(0, SIDE, some), (bar + rng.integers(0, 2, some)) % SIDE)
        made["y"] = rng.integers(0, SIDE, some)
        made["p"] = rng.integers(0, 2, some)
        yield made


def calibration(rate: int) -> Array:
    """Return frames of one millisecond."""
    events = np.concatenate(list(recording(64 * rate, rate, seed=1)))
    frames = np.zeros((64, 2, SIDE, SIDE), np.float32)
    np.add.at(frames, (events["t"] // 1000 % 64, events["p"], events["y"], events["x"]), 1)
    return frames


def resident_mb() -> float:
    """Return the process's resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(page: Page, library: Path, count: int, rate: int) -> None:
    """Add a row: so many events, at so many per window of one millisecond."""
    graph = read(quantized(calibration(rate)))
    stream = Stream(DeltaGraph(graph, library), window_us=1000)
    seconds = first = 0.0
    for piece in recording(count, rate):
        begin = time.perf_counter()
        for _ in stream.feed(piece):
            pass
        seconds += time.perf_counter() - begin
        first = first or resident_mb()
    stream.flush()
    counts = stream.counts
    windows, dense = counts["windows"], DENSE
    page.add(
        f"{count:,}", rate, f"{windows:,}", f"{seconds:.2f}", f"{count / seconds:,.0f}",
        f"{seconds / count * 1e9:.0f}", f"{seconds / windows * 1e6:.0f}",
        f"{counts['operations'] / count:.0f}", f"{counts['operations'] / (windows * dense):.0%}",
        f"{first:.1f}", f"{resident_mb():.1f}",
    )  # fmt: skip


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=Path("docs/results/event_stream.md"))
    given = parser.parse_args()
    page = Page(given.out, "A stream of events through five layers", ABOUT, HEADINGS)
    with tempfile.TemporaryDirectory() as folder, pinned(1):
        library = Path(folder) / "events.so"
        library.write_bytes(build(features_of(load_target("event-cpu"))) or b"")
        for share in (100, 10, 1):
            measure(page, library, given.events // share, 1000)
        for rate in (10, 100, 10_000):
            measure(page, library, min(given.events // 10, rate * 10_000), rate)


if __name__ == "__main__":
    main()
