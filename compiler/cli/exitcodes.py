"""Exit codes of every command; documented in docs/cli.md."""

from __future__ import annotations

CLEAN = 0
FINDING = 1  # a threshold was missed, a clash or a difference was found
BAD_INPUT = 2  # a ParedError: the message has a reason code and the next step
INTERNAL = 70  # a fault of pared itself (EX_SOFTWARE of sysexits.h); a crash report was written
INTERRUPTED = 130  # 128 + SIGINT
PIPE_CLOSED = 141  # 128 + SIGPIPE: the reader of our output went away
TERMINATED = 143  # 128 + SIGTERM
