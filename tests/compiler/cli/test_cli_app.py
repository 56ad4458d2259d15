"""The command line as a whole: speed, help, version, completion, usage errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import get_args

import pytest
from cli_runner import Run

from pared.compiler.cli.app import VERBS
from pared.compiler.cli.compile_options import Criterion, Shrink

HEAVY = ("onnx", "onnxruntime", "onnx_ir", "numpy", "onnxscript")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pared.compiler.cli.app import main; main(['--help']); "
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pared.compiler.cli.app import VERBS, main\n"
        "for verb in VERBS: main([verb, '--help'])\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_takes_less_than_half_a_second_of_cpu_time() -> None:
    # CPU time, best of three: what else the machine does must not matter.
    def once() -> float:
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "pared.compiler.cli.app", "--help"], capture_output=True, check=True
        )
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize("verb", [*VERBS, "compare"])
def test_help_of_a_verb_names_its_json_flag(verb: str, pared: Run) -> None:
    done = pared(verb, "--help")
    assert (done.code, "--json" in done.out) == (0, True)


def test_help_shows_brackets_that_are_no_style(pared: Run) -> None:
    assert "frames [time, ...]" in " ".join(pared("run", "--help").out.replace("│", "").split())


def test_choices_in_the_help_are_words_that_are_not_cut(pared: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = pared("compile", "--help").out
    assert all(name in shown for name in (*get_args(Criterion), *get_args(Shrink)))


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_a_verb_shows_an_example(verb: str, pared: Run) -> None:
    assert "Example" in pared(verb, "--help").out


def test_help_fits_eighty_columns(pared: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for verb in VERBS for line in pared(verb, "--help").out.splitlines()]
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_version_is_that_of_the_package(pared: Run) -> None:
    from importlib.metadata import version

    assert pared("--version").out == f"pared {version('pared')}\n"


def test_no_arguments_show_the_help(pared: Run) -> None:
    done = pared()
    assert (done.code, done.err) == (0, "")
    assert "Usage: pared" in done.out


def test_an_unknown_verb_is_a_usage_error(pared: Run) -> None:
    done = pared("compil")
    assert done.code == 2
    assert done.err.startswith("error[usage]: No such command 'compil'")


def test_an_unknown_flag_is_a_usage_error(pared: Run) -> None:
    done = pared("doctor", "--nonsense")
    assert done.code == 2
    assert "error[usage]" in done.err
    assert "pared doctor --help" in done.err


def test_a_usage_error_with_json_is_one_object(pared: Run) -> None:
    done = pared("doctor", "--nonsense", "--json")
    assert done.code == 2
    assert done.json["error"]["reason"] == "usage"  # type: ignore[index,call-overload]
    assert done.err == ""


def test_shell_completion_completes_verbs() -> None:
    words = {"_PARED_COMPLETE": "complete_bash", "COMP_WORDS": "pared ins", "COMP_CWORD": "1"}
    program = "import sys; from pared.compiler.cli.app import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["inspect"]


def test_output_to_a_file_has_no_colours() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pared.compiler.cli.app", "targets"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout


def test_no_color_switches_colours_off_even_when_forced_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from pared.compiler.cli import console, render

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    made = console.make_console()
    with made.capture() as capture:
        made.print(render.styled("yes", "good"))
    assert "\x1b[32m" not in capture.get()


@pytest.mark.parametrize(("variable", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_bars_stay_away_from(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pared.compiler.cli import console

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert console.wants_bars(as_json=False, quiet=False)
    monkeypatch.setenv(variable, value)
    assert not console.wants_bars(as_json=False, quiet=False)


@pytest.mark.parametrize(("as_json", "quiet"), [(True, False), (False, True)])
def test_bars_stay_away_with_json_and_quiet(
    as_json: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pared.compiler.cli import console

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not console.wants_bars(as_json=as_json, quiet=quiet)


@pytest.mark.parametrize("arguments", ["targets --json", "--help"])
def test_a_closed_pipe_ends_quietly(arguments: str) -> None:
    command = f"{sys.executable} -m pared {arguments}"
    reader = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stderr is not None
    reader.stdout.close()  # gone before anything is written
    errors = reader.stderr.read()
    reader.stderr.close()
    deadline = time.monotonic() + 60
    while reader.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (reader.returncode, errors) == (141, b"")


def test_a_narrow_encoding_does_not_end_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pared", "targets"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_pared_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pared", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("pared ")
