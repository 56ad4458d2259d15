"""What each quantization method is worth: top-1 by method, weight width and granularity on real models.

    PARED_DATA=/path/to/data python -m pared.bench.quantize_methods [--json] [--models kws_ds_cnn_s]

Activations have 8 bits (static, `--range`); the first 100 samples calibrate, the others are scored. Each cell
is the pipeline that `--pipeline` of the command line would take, run in onnxruntime on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..compiler.data import open_samples
from ..compiler.errors import DataError
from ..compiler.ir.export import signature_of
from ..compiler.ir.importer import import_model
from ..compiler.manager import Manager
from ..compiler.ort import make_session, run_session, version
from ..compiler.pass_api import Context
from ..compiler.pipeline import parse_pipeline
from ..compiler.records import to_json
from ..compiler.registry import MACROS, PASSES
from .data import data_folder, idx_images

Array = npt.NDArray[np.generic]

CALIBRATION = 100
SCORED = 2000
WIDTHS = (8, 6, 4)
GRANULARITIES = ("tensor", "channel")
METHODS: Mapping[str, tuple[str, str]] = {
    # name -> (passes before, options of quantize)
    "nearest": ("", ""),
    "equalize": ("equalize,", ""),
    "bias-correct": ("", "bias_correct=true"),
    "adaround": ("", "rounding=adaround"),
    "gptq": ("", "rounding=gptq"),
    "equalize+gptq+bias": ("equalize,", "rounding=gptq bias_correct=true"),
}


@dataclass(frozen=True)
class Task:
    """A model with labelled inputs, first axis = samples."""

    name: str
    model: ir.Model
    inputs: Array
    labels: Array


@dataclass(frozen=True)
class Cell:
    """One configuration: top-1 in % over `samples` samples, measured; seconds of the whole pipeline."""

    model: str
    weights: str
    bits: int
    method: str
    pipeline: str
    top1: float
    samples: int
    seconds: float


def _kws01(data: Path) -> tuple[Array, Array]:
    table = np.load(data / "datasets" / "kws_gscv2_mfcc_int8.npz")
    return ((table["x"].astype(np.float32) - 83) * np.float32(0.5847029089927673)), table["y"]


def _kws(data: Path) -> tuple[Array, Array]:
    table = np.load(data / "datasets" / "kws_gscv2_mfcc_mlkws.npz")
    return table["x320"], table["y"]


def _mnist(data: Path) -> tuple[Array, Array]:
    return idx_images("mnist", data)


READERS: Mapping[str, Callable[[Path], tuple[Array, Array]]] = {
    "kws01_dscnn": _kws01,
    "kws_ds_cnn_s": _kws,
    "mnist_conv8": _mnist,
}


def load_task(name: str, data: Path) -> Task:
    """Read a model and its data; `DataError` names what is missing."""
    try:
        inputs, labels = READERS[name](data)
    except FileNotFoundError as err:
        raise DataError("bench-data-missing", f"{err.filename} is missing", "set PARED_DATA") from err
    model = import_model(data / "models" / f"{name}.onnx").model
    end = CALIBRATION + SCORED
    return Task(name, model, inputs[:end], labels[:end])


def measure(task: Task, pipeline: str) -> tuple[float, int, float]:
    """Return top-1 in %, samples scored and seconds for one pipeline."""
    port = signature_of(task.model).inputs[0].name
    head = {port: task.inputs[:CALIBRATION]}
    samples = open_samples(head, signature_of(task.model), purpose="calibration")
    start = time.perf_counter()
    passes = parse_pipeline(pipeline, PASSES, MACROS)
    model = Manager().run(task.model, passes, Context(calibration=samples)).model
    seconds = time.perf_counter() - start
    session = make_session(model)
    scored = zip(task.inputs[CALIBRATION:], task.labels[CALIBRATION:], strict=True)
    right = [int(_answer(run_session(session, {port: x[None]})) == int(y)) for x, y in scored]
    return 100.0 * sum(right) / len(right), len(right), seconds


def _answer(outputs: Mapping[str, Array]) -> int:
    return int(np.argmax(next(iter(outputs.values()))))


def cells(task: Task, ranges: str) -> Iterator[Cell]:
    """Measure float and every configuration of one model."""
    top1, count, seconds = measure(task, "canonicalize")
    yield Cell(task.name, "float", 32, "float", "canonicalize", top1, count, seconds)
    for granularity in GRANULARITIES:
        for bits in WIDTHS:
            for method, (before, options) in METHODS.items():
                how = f"bits={bits} weights={granularity} range={ranges} {options}".strip()
                text = f"canonicalize,{before}quantize{{{how}}}"
                top1, count, seconds = measure(task, text)
                yield Cell(task.name, granularity, bits, method, text, top1, count, seconds)


def markdown(found: Sequence[Cell]) -> str:
    """One table: rows are model, granularity and width, columns are methods."""
    lines = [
        "| model | weights | bits | float | " + " | ".join(METHODS) + " |",
        "|---|---|---|---|" + "---|" * len(METHODS),
    ]
    floats = {cell.model: cell.top1 for cell in found if cell.method == "float"}
    rows: dict[tuple[str, str, int], dict[str, float]] = {}
    for cell in found:
        if cell.method != "float":
            rows.setdefault((cell.model, cell.weights, cell.bits), {})[cell.method] = cell.top1
    for (model, granularity, bits), row in rows.items():
        numbers = " | ".join(f"{row[method]:.1f}" for method in METHODS)
        lines.append(f"| {model} | {granularity} | {bits} | {floats[model]:.1f} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="top-1 of quantization methods (measured, onnxruntime, CPU)")
    parser.add_argument("--models", nargs="*", default=list(READERS), choices=list(READERS))
    parser.add_argument("--range", default="moving", help="range method of activations")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    folder = data_folder()
    found: list[Cell] = []
    for name in chosen.models:
        for cell in cells(load_task(name, folder), chosen.range):
            found.append(cell)
            sys.stderr.write(f"{cell.model} {cell.weights} {cell.bits} {cell.method}: {cell.top1:.1f}\n")
    if chosen.json:
        sys.stdout.write(json.dumps({"onnxruntime": version(), "cells": to_json(found)}) + "\n")
    else:
        sys.stdout.write(markdown(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
