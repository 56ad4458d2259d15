from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from event_models import images, quantized
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.event.build import build, compiler
from pared.backends.event.delta import DeltaGraph, NumpyDeltas
from pared.backends.event.engine import EventExecutable
from pared.backends.event.read import read
from pared.backends.event.simulate import graded, reals
from pared.backends.event.streams.clock import GAP_US, RESTART, Clock
from pared.backends.event.streams.queue import EventQueue
from pared.backends.event.streams.stream import Stream
from pared.compiler.errors import DataError, TargetError, UnsupportedOp
from pared.compiler.event_files import open_recording
from pared.compiler.streams import EVENT, Events, window_of


@pytest.fixture(scope="module", params=["numpy", "kernels"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> type:
    """A way to make what runs frames of the digits CNN."""
    if request.param == "numpy":
        return NumpyDeltas
    if compiler() is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("streams") / "model.so"
    path.write_bytes(build(()) or b"")
    return lambda graph: DeltaGraph(graph, path)


def digits(engine: type, **options: object) -> Stream:
    return Stream(engine(read(quantized("digits_cnn", 8))), **{"window_us": 1000, **options})


def events(t: list[int], x: int | list[int] = 3, y: int = 4, p: int = 1) -> Events:
    found = np.zeros(len(t), EVENT)
    found["t"], found["x"], found["y"], found["p"] = t, x, y, p
    return found


def noise(count: int, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    found = np.zeros(count, EVENT)
    found["x"], found["y"] = rng.integers(0, 8, (2, count))
    found["t"] = np.sort(rng.integers(0, 20_000, count))
    return found


def windows_by_hand(recording: Events) -> Iterator[np.ndarray]:
    for number in np.unique(recording["t"] // 1000):
        frame = np.zeros((1, 1, 8, 8), np.float32)
        for event in recording[recording["t"] // 1000 == number]:
            frame[0, 0, event["y"], event["x"]] += 1
        yield frame


def test_every_window_gives_the_outputs_of_its_frame(engine):
    graph, recording = read(quantized("digits_cnn", 8)), noise(2000)
    found = list(digits(engine).over([recording]))
    wanted = list(windows_by_hand(recording))
    assert len(found) == len(wanted)
    for step, frame in zip(found, wanted, strict=True):
        want = reals(graph, graded(graph, {"image": frame}))["logits"][0]
        assert np.array_equal(step.outputs["logits"], want)
        assert step.events == frame.sum()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5))
@settings(max_examples=8, deadline=None)
def test_how_a_recording_is_cut_into_calls_does_not_matter(sizes):
    recording = noise(sum(sizes))
    whole = list(digits(NumpyDeltas).over([recording]))
    parts = list(digits(NumpyDeltas).over(np.split(recording, np.cumsum(sizes)[:-1])))
    assert [step.time_us for step in whole] == [step.time_us for step in parts]
    assert all(
        np.array_equal(a.outputs["logits"], b.outputs["logits"]) for a, b in zip(whole, parts, strict=True)
    )


def test_bad_events_are_dropped_and_counted_and_leave_no_trace(engine):
    good = events([10, 20, 1500])
    bad = np.concatenate([
        events([5]), events([30], x=8), events([30], x=-1), events([30], y=8), events([30], p=2),
        events([-7]), events([20 + GAP_US * 3]),
    ])  # fmt: skip
    stream, clean = digits(engine), digits(engine)
    found = list(stream.over([good[:2], bad, good[2:]]))
    want = list(clean.over([good]))
    assert [step.events for step in found] == [step.events for step in want]
    assert all(
        np.array_equal(a.outputs["logits"], b.outputs["logits"]) for a, b in zip(found, want, strict=True)
    )
    counts = stream.counts
    assert (counts["out_of_range"], counts["late"], counts["jumps"], counts["used"]) == (5, 1, 1, 3)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(events([5]), "event-order"), (events([30], x=8), "event-range"), (events([-1]), "event-range")],
)
def test_strict_refuses_a_bad_event_and_keeps_the_state(engine, bad, reason):
    stream, clean = digits(engine, strict=True), digits(engine)
    stream.feed(events([10, 20]))
    before = dict(stream.counts)
    with pytest.raises(DataError, match="event 2") as error:
        stream.feed(bad)
    assert error.value.reason == reason
    assert dict(stream.counts) == before
    found, want = list(stream.over([events([30])])), list(clean.over([events([10, 20, 30])]))
    assert np.array_equal(found[0].outputs["logits"], want[0].outputs["logits"])


def test_an_empty_stream_gives_nothing(engine):
    stream = digits(engine)
    assert stream.feed(events([])) == stream.flush() == []
    assert stream.counts["events"] == 0


def test_another_resolution_is_refused_before_anything_changes(engine):
    stream = digits(engine)
    assert stream.feed(events([1]), (8, 8)) == []
    with pytest.raises(DataError, match="34x34") as error:
        stream.feed(events([2]), (34, 34))
    assert error.value.reason == "event-resolution"
    assert stream.counts["events"] == 1


def test_full_pixels_are_counted_and_do_not_wrap(engine):
    stream = digits(engine)
    (step,) = stream.over([events([10] * 300)])
    graph = read(quantized("digits_cnn", 8))
    frame = np.zeros((1, 1, 8, 8), np.float32)
    frame[0, 0, 4, 3] = 300
    assert np.array_equal(step.outputs["logits"], reals(graph, graded(graph, {"image": frame}))["logits"][0])
    assert stream.counts["saturated"] > 0


# --- clock -----------------------------------------------------------------------------------------


def times(clock: Clock, *stamps: int) -> list[int]:
    return clock.accept(np.array(stamps, np.int64))[2].tolist()


def test_a_clock_that_wraps_goes_on():
    period = 1 << 23
    clock, kept, found = Clock(period).accept(np.array([period - 3, period - 1, 2, 9], np.int64))
    assert found.tolist() == [period - 3, period - 1, period + 2, period + 9]
    assert len(kept) == 4
    assert clock.counts["wraps"] == 1
    assert clock.accept(np.array([period - 1], np.int64))[0].counts["late"] == 1


def test_without_a_period_a_smaller_stamp_is_late():
    assert times(Clock(), 100, 90, 110) == [100, 110]


def test_a_lone_stamp_far_ahead_is_dropped_a_gap_is_believed():
    far = GAP_US * 5
    assert times(Clock(), 0, far, 1, 2) == [0, 1, 2]
    assert times(Clock(), 0, far, far + 1, far + 2) == [0, far, far + 1, far + 2]
    clock = Clock()
    for stamp, want in ((0, [0]), (far, []), (far + 1, [far + 1]), (far + 2, [far + 2])):
        clock, _, found = clock.accept(np.array([stamp], np.int64))
        assert found.tolist() == want


def test_a_clock_that_starts_again_is_believed_after_a_while():
    clock = Clock().accept(np.array([10**9], np.int64))[0]
    clock, kept, found = clock.accept(np.arange(2 * RESTART, dtype=np.int64))
    assert clock.counts["restarts"] == 1
    assert found[-1] > 10**9
    assert len(kept) == 2 * RESTART


@given(st.lists(st.integers(0, 2**62), max_size=60), st.integers(1, 5), st.sampled_from([None, 1 << 23]))
@settings(max_examples=200, deadline=None)
def test_times_never_fall_whatever_comes_and_cutting_changes_no_count_of_events(stamps, size, period):
    clock, last, seen = Clock(period), 0, 0
    array = np.array(stamps, np.int64) % (period or 2**62)
    for first in range(0, len(array), size):
        clock, kept, found = clock.accept(array[first : first + size])
        assert len(kept) == len(found)
        assert all(later >= before for before, later in zip([last, *found], found, strict=False))
        last, seen = int(found[-1]) if len(found) else last, seen + len(kept)
    assert seen + clock.counts["late"] + clock.counts["jumps"] == len(array)


# --- frames ----------------------------------------------------------------------------------------


def test_frames_run_with_state_and_wrong_ones_are_refused(engine):
    graph, stream = read(quantized("digits_cnn", 8)), digits(engine)
    for index, image in enumerate(images(3)):
        step = stream.frame(image)
        want = reals(graph, graded(graph, {"image": image[None]}))["logits"][0]
        assert np.array_equal(step.outputs["logits"], want)
        assert step.time_us == index
    assert stream.frame(images(3)[2]).events == 0
    with pytest.raises(DataError, match="takes 64 numbers"):
        stream.frame(np.zeros(63, np.float32))
    with pytest.raises(DataError, match="takes 64 numbers"):
        stream.frame(np.zeros(64, "U1"))


def test_reset_forgets_frames_and_time(engine):
    stream = digits(engine)
    stream.feed(events([5000]))
    stream.reset()
    assert stream.flush() == []
    assert [step.time_us for step in stream.over([events([1])])] == [1000]


# --- queue -----------------------------------------------------------------------------------------


def test_a_full_queue_makes_its_writer_wait_and_loses_nothing():
    queue, recording = EventQueue(50), noise(1000)
    most: list[int] = []

    def write() -> None:
        for part in np.split(recording, 20):
            queue.put(part)
            most.append(len(queue))
        queue.close()

    writer = threading.Thread(target=write)
    writer.start()
    found = list(digits(NumpyDeltas).follow(queue, most=30))
    writer.join(20)
    want = list(digits(NumpyDeltas).over([recording]))
    assert max(most) <= 50
    assert queue.overflow == 0
    assert [step.events for step in found] == [step.events for step in want]


def test_a_writer_that_cannot_wait_drops_and_counts():
    queue = EventQueue(10)
    assert queue.put(noise(15), timeout=0) == 10
    assert queue.overflow == 5
    assert len(queue.get(100)) == 10
    assert queue.get(1, timeout=0) is None
    queue.close()
    with pytest.raises(ValueError, match="closed"):
        queue.put(noise(1))


# --- files -----------------------------------------------------------------------------------------


def test_nmnist_files_are_read_and_a_cut_event_is_noticed(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes([3, 4, 0x80 | 0x01, 0x02, 0x03, 33, 0, 0x7F, 0xFF, 0xFF, 9, 9]))
    recording = open_recording(path)
    found = np.concatenate(list(recording.events(1)))
    assert found["x"].tolist() == [3, 33]
    assert found["t"].tolist() == [0x010203, 0x7FFFFF]
    assert found["p"].tolist() == [1, 0]
    assert (recording.clock_bits, recording.truncated) == (23, 2)


def test_address_events_and_frames_are_told_apart(tmp_path):
    np.save(tmp_path / "e.npy", noise(7).astype([("x", "<u2"), ("y", "<u2"), ("t", "<u4"), ("p", "?")]))
    np.save(tmp_path / "r.npy", np.zeros((5, 64), bool))
    recording = open_recording(tmp_path / "e.npy")
    assert (recording.kind, recording.clock_bits, len(recording)) == ("events", 32, 7)
    frames = open_recording(tmp_path / "r.npy")
    assert (frames.kind, sum(len(part) for part in frames.frames(2))) == ("frames", 5)


def test_coordinates_beyond_the_type_do_not_wrap_into_range(tmp_path):
    big = np.array([2**32 + 3, 3], np.int64)
    np.savez(
        tmp_path / "e.npz", x=big, y=np.zeros(2, int), t=np.array([2**63, 1], np.uint64), p=np.ones(2, int)
    )
    (found,) = open_recording(tmp_path / "e.npz").events()
    assert found["x"].tolist() == [2**31 - 1, 3]
    assert found["t"].tolist() == [-1, 1]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros(2, int), "y": np.zeros(2, int), "t": np.zeros(2, int)},
        {"x": np.zeros(2, int), "y": np.zeros(2, int), "t": np.zeros(2), "p": np.zeros(2, int)},
        {"x": np.zeros(2, int), "y": np.zeros(3, int), "t": np.zeros(2, int), "p": np.zeros(2, int)},
        {"a": np.zeros((2, 2)), "b": np.zeros((2, 2))},
        {"a": np.array(["text"])},
        {},
    ],
)
def test_files_that_are_no_recordings_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(DataError) as error:
        open_recording(tmp_path / "e.npz")
    assert error.value.reason == "events-file"


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "e.npy").write_bytes(b"\x93NUMPY")
    for name in ("e.npz", "e.npy", "missing.bin", "e.aedat4"):
        with pytest.raises(DataError):
            open_recording(tmp_path / name)


def test_windows_are_read_and_nonsense_is_refused():
    assert [window_of(text) for text in ("10ms", "500us", "1s")] == [10_000, 500, 1_000_000]
    for text in ("0ms", "-1s", "10", "ms", "2h", "999999s", "1.5ms"):
        with pytest.raises(DataError):
            window_of(text)


# --- what cannot stream ----------------------------------------------------------------------------


def test_a_simulated_mode_does_not_stream():
    model = EventExecutable(read(quantized("digits_mlp", 8)), None, "unary")
    with pytest.raises(TargetError, match="whole samples"):
        model.stream(window_us=1000)


def test_address_events_need_an_image():
    from dataclasses import replace

    graph = read(quantized("digits_mlp", 8))
    flat = replace(graph, inputs=(replace(graph.inputs[0], shape=(64,), fed=(64,)),))
    stream = Stream(NumpyDeltas(flat), window_us=1000)
    with pytest.raises(UnsupportedOp, match="height, width"):
        stream.feed(events([1]))
