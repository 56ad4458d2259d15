"""Measured times kept between runs: one record per line, each with its own checksum.

The file lies in the user's cache (`cache.py`), where there is one. Records are added with single
appending writes under a lock, so a writer that dies half-way spoils its own record only: the next one starts
on a new line, and a reader passes over lines whose checksum is wrong. Nothing depends on the cache but time:
without it, or where it cannot be written, everything is measured again, and `trouble` says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .cache import VARIABLE
from .files import replacing

# In the file's name: other versions of pared leave files of another format alone.
FORMAT = 1

_CHECKSUM_DIGITS = 16
# A file is written anew when dead lines make more than half of it and at least this many bytes.
_WORTH_REWRITING = 1 << 16
# Beyond this many records the oldest half is forgotten.
_MOST_RECORDS = 50_000


class TimingCache:
    """Times in seconds by key, shared with other processes through a file.

    Attributes:
        trouble: why times are not kept, empty while they are.
    """

    def __init__(self, folder: Path | None) -> None:
        self.trouble = "" if folder is not None else f"times are not kept: {VARIABLE} is empty"
        self._path = None if folder is None else folder / f"timings-{FORMAT}.txt"
        self._known: dict[str, float] | None = None
        self._guard = threading.Lock()

    def get(self, key: str) -> float | None:
        """Return the time kept under `key`, or None."""
        with self._guard:
            if self._known is None:
                self._known = self._read()
            return self._known.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Keep a time, for this process in any case; a file that cannot be written is no error."""
        assert math.isfinite(seconds), f"a time of {seconds} s"
        self.get(key)
        with self._guard:
            assert self._known is not None, "get has read the file"
            self._known[key] = seconds
            if self._path is None or self.trouble:
                return
            try:
                self._append(_line(key, seconds))
            except OSError as err:
                self.trouble = f"times are not kept: {self._path}: {err.strerror or err}"

    def _read(self) -> dict[str, float]:
        if self._path is None:
            return {}
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as err:
            self.trouble = f"times are not kept: {self._path}: {err.strerror or err}"
            return {}
        known = parse(content)
        try:
            return self._tidied(content, known)
        except OSError:
            return known  # tidying is a service; `put` tells what is wrong with the place

    def _append(self, line: bytes) -> None:
        assert self._path is not None, "put looks"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._path):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)

    def _tidied(self, content: bytes, known: dict[str, float]) -> dict[str, float]:
        live = sum(len(_line(key, seconds)) for key, seconds in known.items())
        dead = len(content) - live
        if len(known) <= _MOST_RECORDS and (dead < _WORTH_REWRITING or dead < live):
            return known
        assert self._path is not None, "there is content"
        with _locked(self._path):
            # Others may have added records since.
            newest = list(parse(self._path.read_bytes()).items())[-_MOST_RECORDS // 2 :]
            with replacing(self._path) as file:
                file.write(b"".join(_line(key, seconds) for key, seconds in newest))
        return dict(newest)


def parse(content: bytes) -> dict[str, float]:
    """Return the records whose checksum is right; of two with one key the later one."""
    known: dict[str, float] = {}
    for line in content.split(b"\n"):
        checksum, _, body = line.partition(b" ")
        if body and checksum == _checksum(body):
            key, seconds = json.loads(body)
            known.pop(key, None)
            known[key] = seconds
    return known


def _line(key: str, seconds: float) -> bytes:
    body = json.dumps([key, seconds], separators=(",", ":")).encode()
    # The leading break ends what a writer that died may have left.
    return b"\n" + _checksum(body) + b" " + body + b"\n"


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_CHECKSUM_DIGITS].encode()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; the system lets go of it when its holder dies."""
    try:
        import fcntl
    except ImportError:  # no POSIX: single appending writes have to do
        yield
        return
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
