"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# CI judges the change, so it draws the same examples every time; elsewhere new ones look for holes.
settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's cache of measured times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
