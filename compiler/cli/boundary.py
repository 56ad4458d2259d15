"""The error boundary: whatever a verb raises becomes one clear message and an exit code, no traceback."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback

import typer

from ..errors import Cancelled, ParedError
from . import exitcodes

# Typer's usage errors share this base in every version, whether Click is vendored or not.
_USAGE_ERROR = typer.BadParameter.__mro__[1]

# errno -> reason code and next step, for errors of the system that nobody translated before.
OS_REASONS = {
    errno.ENOSPC: ("disk-full", "free some space or choose another place"),
    errno.EDQUOT: ("disk-full", "free some space or choose another place"),
    errno.EACCES: ("not-permitted", "check the permissions or choose another place"),
    errno.EPERM: ("not-permitted", "check the permissions or choose another place"),
    errno.EROFS: ("not-permitted", "choose a place on a writable file system"),
    errno.ENOENT: ("file-missing", "check the path"),
    errno.EISDIR: ("not-a-file", "give a file, not a folder"),
    errno.ENOTDIR: ("not-a-folder", "check the path"),
    errno.EEXIST: ("not-a-folder", "a file of that name is in the way; choose another place"),
    errno.ELOOP: ("bad-path", "the links of this path go in a circle"),
    errno.ENAMETOOLONG: ("bad-path", "use a shorter path"),
    errno.EFBIG: ("file-too-large", "the file system or a limit of this session forbids so large a file"),
    errno.EMFILE: ("too-many-files", "raise the limit: ulimit -n"),
    errno.EIO: ("io-error", "the disk could not read or write; check it"),
}


def report(error: BaseException, *, as_json: bool) -> int:
    """Print `error` for the user and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return pipe_closed()
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        error = Cancelled()
    known = _as_pared_error(error)
    if known is None:
        return _crash(error, as_json=as_json)
    _print_error(known, as_json=as_json)
    return exitcodes.INTERRUPTED if isinstance(known, Cancelled) else exitcodes.BAD_INPUT


def pipe_closed() -> int:
    """Leave quietly when the reader of our output is gone (`pared passes | head -1`)."""
    # The interpreter flushes stdout at exit and would complain once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exitcodes.PIPE_CLOSED


def _as_pared_error(error: BaseException) -> ParedError | None:
    """Translate errors of the command line, the system and memory; None for a fault of ours."""
    if isinstance(error, ParedError):
        return error
    if isinstance(error, _USAGE_ERROR):
        return _usage(error)
    if isinstance(error, OSError) and error.errno in OS_REASONS:
        reason, step = OS_REASONS[error.errno]
        place = f"{error.filename}: " if error.filename else ""
        return ParedError(reason, f"{place}{os.strerror(error.errno)}", step)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        name = str(error.object)[max(0, error.start - 60) : error.end + 60]
        found = f"a path is not valid text in this locale: {name!r}"
        return ParedError("bad-path", found, "rename it, or set LC_ALL=C.UTF-8")
    if isinstance(error, MemoryError):
        return ParedError(
            "out-of-memory", "this machine has not enough memory", "free some or use a larger one"
        )
    return None


def _usage(error: BaseException) -> ParedError:
    format_message = getattr(error, "format_message", error.__str__)
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else "pared"
    return ParedError("usage", str(format_message()), f"see `{command} --help`")


def _print_error(error: ParedError, *, as_json: bool) -> None:
    if as_json:
        body = {"reason": error.reason, "message": error.message, "next_step": error.next_step}
        print(json.dumps({"error": body}, indent=2), flush=True)
        return
    print(f"error[{error.reason}]: {error.message}", file=sys.stderr)
    if error.next_step:
        print(f"  next: {error.next_step}", file=sys.stderr)


def _crash(error: BaseException, *, as_json: bool) -> int:
    """Keep the traceback in a file of its own and say where it is."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="pared-crash-", suffix=".txt", delete=False) as file:
            details = f"pared {' '.join(sys.argv[1:])}\nPython {sys.version}\n\n{text}"
            file.write(details.encode(errors="backslashreplace"))
        place = f"the details are in {file.name}"
    except OSError as err:
        place = f"the details could not be written ({err})"
    first_line = (str(error).splitlines() or [""])[0][:200]
    summary = f"a fault of pared: {type(error).__name__}: {first_line}; {place}"
    _print_error(ParedError("internal", summary, "please report it with that file"), as_json=as_json)
    return exitcodes.INTERNAL
