"""Runs an artifact over a recording of events or frames and writes the outputs, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .backend import Array, Arrays
from .errors import DataError
from .event_files import Recording, open_recording
from .run_file import check_output, write_npz
from .runtime import load
from .simulated import simulation_of
from .streams import EventStream, StreamStep

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EventReport:
    """What `pared run --events` did.

    Attributes:
        steps: rows of every output: windows with events, or frames.
        counts: counters of the stream.
        events_per_second: measured, reading and all; None for frames or nothing.
        notes: what a user should know.
    """

    artifact: Path
    events: Path
    output: Path
    output_bytes: int
    steps: int
    counts: Mapping[str, int]
    seconds: float
    events_per_second: float | None
    notes: tuple[str, ...]


def run_events(
    artifact: Path, source: Path, output: Path, *, window: str, strict: bool, progress: Progress
) -> EventReport:
    """Run a recording in order of time and write one row per window or frame, with its `time_us`.

    Raises:
        DataError: `output` is no `.npz` in a folder; the recording cannot be read; with `strict`, a bad
            event, a cut file or an empty one.
        TargetError: `events-unsupported`, the artifact takes whole samples only.
    """
    check_output(output)
    recording = open_recording(source)
    if strict:
        _check_whole(recording)
    with load(artifact, threads=1) as model:
        bits = recording.clock_bits
        stream = model.stream(window, strict=strict, clock_bits=bits)
        begin = time.perf_counter()
        rows = list(_steps(stream, recording, progress))
        seconds = time.perf_counter() - begin
        names = [port.name for port in model.signature.outputs]
        shapes = [port.shape[1:] for port in model.signature.outputs]
        simulated = simulation_of(model.artifact)
    arrays = _join(rows, dict(zip(names, shapes, strict=True)))
    events = stream.counts["events"]
    return EventReport(
        artifact=artifact,
        events=source,
        output=output,
        output_bytes=write_npz(output, arrays),
        steps=len(rows),
        counts=dict(stream.counts),
        seconds=seconds,
        events_per_second=events / seconds if events else None,
        notes=(*simulated, *_notes(recording, stream.counts)),
    )


def _check_whole(recording: Recording) -> None:
    if recording.truncated:
        raise DataError(
            "events-file",
            f"{recording.path} ends with {recording.truncated} bytes of a cut event",
            "record it again",
        )
    if not len(recording):
        raise DataError(
            "events-empty", f"{recording.path} holds no {recording.kind}", "leave strict out to take it"
        )


def _steps(stream: EventStream, recording: Recording, progress: Progress) -> Iterator[StreamStep]:
    done, every = 0, len(recording)
    if recording.kind == "frames":
        for part in recording.frames():
            yield from (stream.frame(np.asarray(frame)) for frame in part)
            done += len(part)
            progress("frames", done, every)
        return
    for events in recording.events():
        yield from stream.feed(events, recording.resolution)
        done += len(events)
        progress("events", done, every)
    yield from stream.flush()


def _join(rows: list[StreamStep], shapes: Mapping[str, tuple[int | str, ...]]) -> Arrays:
    arrays: dict[str, Array] = {}
    for name, shape in shapes.items():
        empty = np.zeros((0, *(size for size in shape if isinstance(size, int))), np.float32)
        arrays[name] = np.stack([row.outputs[name] for row in rows]) if rows else empty
    arrays["time_us"] = np.array([row.time_us for row in rows], np.int64)
    arrays["events"] = np.array([row.events for row in rows], np.int64)
    return arrays


def _notes(recording: Recording, counts: Mapping[str, int]) -> Iterator[str]:
    if not len(recording):
        yield f"the recording holds no {recording.kind}: nothing ran"
    if recording.truncated:
        yield f"{recording.truncated} bytes at the end are no whole event"
    texts = {
        "out_of_range": "events outside the image, of unknown polarity or of impossible time: dropped",
        "late": "events earlier than the one before: dropped",
        "jumps": "lone events far ahead in time: dropped",
        "restarts": "times the clock started again: time goes on from there",
        "saturated": "events on pixels that were full: the window is long for so many",
    }
    yield from (f"{counts[name]} {text}" for name, text in texts.items() if counts[name])
    if counts["out_of_range"] * 2 > counts["events"]:
        yield "most events lie outside: the recording is of another resolution than the model"
