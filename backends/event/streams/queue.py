"""A bounded queue of events between a sensor's thread and the network's."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np

from ....compiler.streams import EVENT, Events


class EventQueue:
    """First in, first out, never more than `capacity` events; safe between threads.

    `put` waits while it is full, which is what slows a sensor's reader down; with a timeout, or of 0 seconds,
    what finds no room is dropped and counted in `overflow`.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.overflow = 0
        self._parts: deque[Events] = deque()
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Return how many events wait."""
        return self._held

    def put(self, events: Events, timeout: float | None = None) -> int:
        """Add events in order; returns how many were taken.

        Args:
            events: any number.
            timeout: seconds to wait for room, all in all; None: as long as it takes.

        Raises:
            ValueError: the queue was closed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        taken = 0
        with self._changed:
            while taken < len(events):
                if self._closed:
                    raise ValueError("the queue was closed")
                room = self.capacity - self._held
                if room:
                    part = np.array(events[taken : taken + room])
                    self._parts.append(part)
                    self._held += len(part)
                    taken += len(part)
                    self._changed.notify_all()
                elif not self._wait(end):
                    self.overflow += len(events) - taken
                    break
        return taken

    def get(self, most: int, timeout: float | None = None) -> Events | None:
        """Return up to `most` events, at least one; None once the queue is closed and empty, or too late."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._held:
                if self._closed or not self._wait(end):
                    return None
            return self._take(most)

    def close(self) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, end: float | None) -> bool:
        """Wait for a change; says whether there is time left."""
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        self._changed.wait(left)
        return True

    def _take(self, most: int) -> Events:
        parts, count = [], 0
        while self._parts and count < most:
            part = self._parts.popleft()
            if len(part) > most - count:
                self._parts.appendleft(part[most - count :])
                part = part[: most - count]
            parts.append(part)
            count += len(part)
        self._held -= count
        self._changed.notify_all()
        return np.concatenate(parts) if parts else np.zeros(0, EVENT)
