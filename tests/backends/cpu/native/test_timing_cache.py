"""Times outlive a process, damage and each other's writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pared.compiler.cache import cache_folder
from pared.compiler.timing_cache import TimingCache, parse

_WRITE = """
import sys
from pathlib import Path
from pared.compiler.timing_cache import TimingCache
cache, who = TimingCache(Path(sys.argv[1])), sys.argv[2]
for index in range(int(sys.argv[3])):
    cache.put(f"{who} {index}", index / 8)
assert not cache.trouble, cache.trouble
"""

# Writes whole records, then half of one, and waits to be killed with the lock in its hands.
_DIE = """
import os, sys, time
from pathlib import Path
from pared.compiler import timing_cache
path = Path(sys.argv[1]) / f"timings-{timing_cache.FORMAT}.txt"
timing_cache.TimingCache(path.parent).put("whole", 1.0)
with timing_cache._locked(path), path.open("ab") as file:
    file.write(timing_cache._line("half", 2.0)[:-9])
    file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


def _file(folder: Path) -> Path:
    (found,) = folder.glob("timings-*.txt")
    return found


def test_a_time_is_there_for_the_next_process(tmp_path: Path) -> None:
    TimingCache(tmp_path).put("conv", 0.25)
    assert TimingCache(tmp_path).get("conv") == 0.25


def test_an_unknown_key_has_no_time(tmp_path: Path) -> None:
    TimingCache(tmp_path).put("conv", 0.25)
    assert TimingCache(tmp_path).get("con") is None


def test_the_later_of_two_times_counts(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path)
    cache.put("conv", 0.25)
    cache.put("conv", 0.5)
    assert TimingCache(tmp_path).get("conv") == 0.5


@pytest.mark.parametrize("change", [b"0.25", b"conv", b" ["])
def test_a_changed_record_is_passed_over_and_written_again(tmp_path: Path, change: bytes) -> None:
    TimingCache(tmp_path).put("conv", 0.25)
    TimingCache(tmp_path).put("pool", 0.75)
    content = _file(tmp_path).read_bytes()
    _file(tmp_path).write_bytes(content.replace(change, bytes([change[0] ^ 1]) + change[1:], 1))
    cache = TimingCache(tmp_path)
    assert (cache.get("conv"), cache.get("pool")) == (None, 0.75)
    cache.put("conv", 0.5)
    assert TimingCache(tmp_path).get("conv") == 0.5


def test_a_file_of_garbage_is_no_error(tmp_path: Path) -> None:
    TimingCache(tmp_path).put("conv", 0.25)
    _file(tmp_path).write_bytes(bytes(range(256)) * 8)
    cache = TimingCache(tmp_path)
    assert cache.get("conv") is None
    cache.put("conv", 0.5)
    assert TimingCache(tmp_path).get("conv") == 0.5


def test_a_file_that_is_mostly_garbage_is_written_anew(tmp_path: Path) -> None:
    TimingCache(tmp_path).put("conv", 0.25)
    with _file(tmp_path).open("ab") as file:
        file.write(b"x" * (1 << 17))
    assert TimingCache(tmp_path).get("conv") == 0.25
    assert _file(tmp_path).stat().st_size < 100
    assert TimingCache(tmp_path).get("conv") == 0.25


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_writer_killed_half_way_spoils_its_own_record_only(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _DIE, str(tmp_path)], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
    cache = TimingCache(tmp_path)
    assert (cache.get("whole"), cache.get("half")) == (1.0, None)
    cache.put("next", 3.0)
    cache.put("half", 2.5)
    again = TimingCache(tmp_path)
    assert [again.get(key) for key in ("whole", "half", "next")] == [1.0, 2.5, 3.0]


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    count = 200
    commands = [[sys.executable, "-c", _WRITE, str(tmp_path), who, str(count)] for who in "ab"]
    writers = [subprocess.Popen(command) for command in commands]
    assert [writer.wait() for writer in writers] == [0, 0]
    want = {f"{who} {index}": index / 8 for who in "ab" for index in range(count)}
    assert parse(_file(tmp_path).read_bytes()) == want


def test_where_nothing_can_be_written_times_are_kept_in_memory_and_it_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    cache = TimingCache(blocked / "cache")
    cache.put("conv", 0.25)
    assert cache.get("conv") == 0.25
    assert "not kept" in cache.trouble
    assert str(blocked) in cache.trouble


def test_an_empty_variable_turns_the_cache_off() -> None:
    assert cache_folder({"PARED_CACHE_DIR": "", "HOME": "/nowhere"}) is None
    assert "PARED_CACHE_DIR" in TimingCache(None).trouble


def test_the_own_variable_beats_xdg_and_xdg_beats_home() -> None:
    both = {"PARED_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/xdg"}
    assert cache_folder(both) == Path("/own")
    assert cache_folder({"XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/pared")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path(os.path.expanduser("~/.cache/pared"))
