"""`pared`: the command line's entry point and its table of verbs."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated

import typer

from . import (
    bench,
    boundary,
    compile,
    doctor,
    estimate,
    exitcodes,
    inspect,
    passes,
    rebuild,
    run,
    sensitivity,
    targets,
    verify,
)
from .outcome import Outcome

_EPILOG = (
    "Exit codes: 0 clean, 1 finding or threshold missed, 2 bad input, 70 a fault of pared, 130 interrupted."
)

app = typer.Typer(
    name="pared",
    help="ONNX in, verified and measured artifacts out.",
    epilog=_EPILOG,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Verb -> function, in the order of a user's work. `compare` is another name of `verify`.
VERBS: dict[str, Callable[..., Outcome]] = {
    "doctor": doctor.doctor,
    "inspect": inspect.inspect,
    "sensitivity": sensitivity.sensitivity,
    "estimate": estimate.estimate,
    "compile": compile.compile_verb,
    "run": run.run,
    "verify": verify.verify,
    "bench": bench.bench,
    "rebuild": rebuild.rebuild,
    "passes": passes.passes,
    "targets": targets.targets,
}
for _name, _verb in VERBS.items():
    app.command(_name)(_verb)
app.command("compare", hidden=True)(verify.verify)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pared {version('pared')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """ONNX in, verified and measured artifacts out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing raised inside gets out."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    try:
        _print_whatever_the_terminal_can()
        _leave_cleanly_on_sigterm()
        return _invoke(args)
    except Exception as err:
        return boundary.report(err, as_json=as_json)
    except KeyboardInterrupt as err:
        return boundary.report(err, as_json=as_json)
    except SystemExit as err:
        if err.code == exitcodes.TERMINATED:
            raise
        return boundary.pipe_closed()  # Typer's own answer to a reader of the help that went away


def _invoke(args: list[str]) -> int:
    command = typer.main.get_command(app)
    result = command.main(args=args or ["--help"], prog_name="pared", standalone_mode=False)
    if isinstance(result, Outcome):
        _print(result)
        return result.code
    # Typer turns Ctrl-C inside a command into this exit code.
    if result == exitcodes.INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else exitcodes.CLEAN


def _print(outcome: Outcome) -> None:
    """Print the one object or the one view; flushed here so that a closed pipe is noticed here."""
    if outcome.as_json:
        from ..records import to_json

        sys.stdout.write(json.dumps(to_json(outcome.record), indent=2, allow_nan=False) + "\n")
    elif not outcome.quiet:
        from .console import make_console

        make_console().print(outcome.show(), crop=False)
    sys.stdout.flush()


def _print_whatever_the_terminal_can() -> None:
    """Keep odd file names and narrow encodings from ending a command that did its work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave_cleanly_on_sigterm() -> None:
    """Let `kill` unwind the stack, so that temporary folders are removed."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread: an embedding program owns the signals
        return


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(exitcodes.TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
