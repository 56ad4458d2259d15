"""Models placed on neuromorphic devices: what fits, how full cores are, modelled energy.

    PARED_DATA=<folder of models and data> python -m pared.bench.event.mapping [FOLDER FOR REPORTS]

Run it in a checkout. Writes docs/results/event_mapping.md and event_energy.md, and with an argument the whole
report of every model and device as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from ...backends.event.graph import EventGraph
from ...backends.event.ledger import ledger
from ...backends.event.mapping.place import device_of, place
from ...backends.event.mapping.records import Layout
from ...backends.event.mapping.report import Entry, energy, report
from ...backends.event.mapping.views import views
from ...backends.event.read import read
from ...backends.event.simulate import graded
from ...compiler.backend import Array
from ...compiler.records import Json
from ...compiler.target import Target
from ...targets import load_target
from ..data import found_folder
from ..results import Page
from .models import Source, digits, kws01, quantized

TARGETS = ("event-speck2f", "event-loihi1", "event-loihi2", "event-spinnaker2", "event-akida1000")
_SAMPLES = 16
_MODELS = ("", "spikes_", "dense_", "rival_")

MAPPING = """`PARED_DATA=... python -m pared.bench.event.mapping`. Layers of quantized models placed on
devices, by the limits in `targets/event-*.toml`, which name their sources. Nothing was run on a device.
`fill`: of the fullest core. `exceeded`: which limits, the worst need of what there is, and by how many
layers. Every report also says what would fit; `pared compile --engine survey` writes it as
`reports/mapping.json`. Cores of Akida are least numbers: the vendor's mapping takes as many or more."""
PLACED = ("model", "bits", "device", "fits", "layers", "neurons", "cores", "fill", "exceeded")
ENERGY = """`PARED_DATA=... python -m pared.bench.event.mapping`. All modelled, in nanojoules per sample;
nothing is measured, and no column may be compared with a measured figure. Events: one with payload per active
input. Spikes: one per count, as devices without payload send them. Dense: all products with 8-bit inputs.
Rival: a dense network of equal information, inputs of ceil(log2(T + 1)) bits (arXiv 2409.08290). Operations
alone by Horowitz (45 nm: 8-bit MAC 0.23 pJ, addition 0.03 pJ); with memory by accesses of 32 bits, 10, 20 and
100 pJ from 8 KiB, 32 KiB and 1 MiB (arXiv 2210.13107). Loihi 1: 23.6 pJ per spike and synapse (14 nm);
SpiNNaker 2: 10 pJ per event and synapse (22 nm); both without neuron updates, communication and idle power
(PMC10326429, table 3); in brackets where the device does not hold the network. Loihi 2, Speck 2f, Akida: no
energy per operation is published, so none is given. vww01 is fed crops of two photographs, not its own test
images."""
ENERGIES = (
    "model", "bits", "samples", "events / spikes in", "event / spike / dense operations",
    "operations alone: events / spikes / dense / rival", "with memory: events / spikes / dense / rival",
    "rival's input bits", "Loihi 1", "SpiNNaker 2",
)  # fmt: skip


def sources(folder: Path) -> Iterator[Source]:
    """Yield the models with samples."""
    yield digits("digits_mlp", _SAMPLES)
    yield digits("digits_cnn", _SAMPLES)
    if (data := found_folder()) is not None:
        yield kws01(data, _SAMPLES)
        yield vww01(data, folder)


def vww01(data: Path, folder: Path) -> Source:
    """Return MobileNet v1 (0.25, 96x96) of MLPerf Tiny, fed channels first, with crops of photographs.

    Its own images may not be passed on; the two photographs of scikit-learn stand in for activity.
    """
    model = onnx.load(data / "models" / "vww01_mobilenetv1.onnx")
    first = next(node for node in model.graph.node if node.op_type == "Transpose")
    entry = model.graph.input[0]
    for node in model.graph.node:
        node.input[:] = [entry.name if name == first.output[0] else name for name in node.input]
    model.graph.node.remove(first)
    for place_, size in enumerate((3, 96, 96), start=1):
        entry.type.tensor_type.shape.dim[place_].dim_value = size
    path = folder / "vww01.onnx"
    onnx.save(model, path)
    crops = photographs(2 * _SAMPLES)
    return Source("vww01_mobilenetv1", path, entry.name, crops[::2], crops[1::2], np.zeros(0, np.int64))


def photographs(count: int) -> Array:
    """Return crops [count, 3, 96, 96] of 0 to 1."""
    from sklearn.datasets import load_sample_images

    rng, crops = np.random.default_rng(0), []
    for index in range(count):
        image = load_sample_images().images[index % 2][::2, ::2]
        top, left = rng.integers(0, image.shape[0] - 96), rng.integers(0, image.shape[1] - 96)
        crops.append(image[top : top + 96, left : left + 96].transpose(2, 0, 1))
    return np.asarray(np.stack(crops) / 255, np.float32)


def exceeded(layout: Layout) -> str:
    """Say which limits are exceeded, by how many layers, and by how much at most."""
    if layout.fits:
        return ""
    numbers = Counter(misfit.limit for misfit in layout.misfits)
    worst = {
        limit: max(
            (m for m in layout.misfits if m.limit == limit),
            key=lambda m: (m.need or 0) / m.have if m.have else 0,
        )
        for limit in numbers
    }
    texts = []
    for limit, count in numbers.items():
        one = worst[limit]
        over = f" ({one.need} of {one.have})" if one.have else ""
        texts.append(f"{limit.replace('_', ' ')}{over}" + (f" x{count}" if count > 1 else ""))
    return "; ".join(texts)


def add_energy(page: Page, source: Source, bits: int, graph: EventGraph, entries: list[Entry]) -> None:
    """Add a model's row from its ledger."""
    done = [
        sum(number(entry[key]) for entry in entries for key in keys)
        for keys in (("effective_macs", "effective_acs"), ("spike_acs",), ("dense_macs",))
    ]
    energies = [cast(Entry, entry["energy"]) for entry in entries]
    columns = [
        " / ".join(f"{sum(number(one[f'{name}{kind}']) for one in energies):.0f}" for name in _MODELS)
        for kind in ("op_count", "op_and_memory")
    ]
    pairs = [(one, entry) for one, entry in zip(energies, entries, strict=True) if entry["dense_macs"]]
    widths = sorted({int(number(cast(list[Json], one["rival_bits"])[1])) for one, _ in pairs})
    sent = [sum(number(entry[key]) for entry in entries) for key in ("events", "spikes")]
    page.add(
        source.name, bits, len(source.samples), " / ".join(f"{count:.0f}" for count in sent),
        " / ".join(f"{count:.0f}" for count in done), *columns, ", ".join(map(str, widths)),
        *(of_device(graph, target, entries) for target in ("event-loihi1", "event-spinnaker2")),
    )  # fmt: skip


def of_device(graph: EventGraph, name: str, entries: list[Entry]) -> str:
    """Return a device's modelled energy, in brackets where it does not hold the network."""
    target = load_target(name)
    found = energy(target, device_of(target), entries)["value"]
    text = f"{number(found):.0f}"
    return text if place(graph, target).fits else f"({text})"


def number(value: Json) -> float:
    """Return a number of a report."""
    assert isinstance(value, int | float), f"a number, not {value!r}"
    return float(value)


def add_device(page: Page, source: Source, bits: int, graph: EventGraph, target: Target) -> Layout:
    """Place a model on a device and add the row."""
    layout = place(graph, target)
    network = views(graph)
    fill = f"{max(part.fill for part in layout.placed):.0%}" if layout.placed else "-"
    page.add(
        source.name, bits, target.name.removeprefix("event-"), "yes" if layout.fits else "no", len(network),
        sum(view.neurons for view in network), f"{layout.cores_needed} of {layout.cores}", fill,
        exceeded(layout),
    )  # fmt: skip
    return layout


def write(folder: Path, source: Source, bits: int, graph: EventGraph, entries: list[Entry]) -> None:
    """Write the whole reports."""
    for name in TARGETS:
        target = load_target(name)
        found = report(views(graph), place(graph, target), target, device_of(target), entries)
        path = folder / f"{source.name}_{bits}_{name.removeprefix('event-')}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Write the pages."""
    results = Path("docs/results")
    placed = Page(results / "event_mapping.md", "Event layers on devices", MAPPING, PLACED)
    energies = Page(results / "event_energy.md", "Modelled energy of event layers", ENERGY, ENERGIES)
    reports = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        for source in sources(Path(folder)):
            for bits in (8, 4, 2):
                graph = read(quantized(source, bits))
                counts = graded(graph, {source.input: source.samples})
                entries = [dict(one) for one in ledger(graph, counts, load_target("event-loihi1").energy)]
                for name in TARGETS:
                    add_device(placed, source, bits, graph, load_target(name))
                add_energy(energies, source, bits, graph, cast(list[Entry], entries))
                if reports is not None:
                    write(reports, source, bits, graph, cast(list[Entry], entries))


if __name__ == "__main__":
    main()
