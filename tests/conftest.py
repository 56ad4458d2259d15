"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# CI judges the change, so it draws the same examples every time; elsewhere new ones look for holes.
settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
