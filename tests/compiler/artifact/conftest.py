from pathlib import Path

import pytest
from tiny_artifact import write


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write(tmp_path / "out")
