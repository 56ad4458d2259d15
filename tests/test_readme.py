"""The README keeps its promises: its Python runs, its commands and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```\n(.*?)```", README, flags=re.DOTALL))
VERBS = sorted(set(re.findall(r"^pared (\w+)", BLOCKS, flags=re.MULTILINE)))


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})  # the block is ours, in this repository


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_shown_exists(verb: str) -> None:
    from pared.compiler.cli.app import app

    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
