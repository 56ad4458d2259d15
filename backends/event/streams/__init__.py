"""Streams of events and frames: clock, windows of time, bounded queues, state between calls."""
