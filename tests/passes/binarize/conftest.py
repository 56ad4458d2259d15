"""Small networks are shared with the tests of pruning."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "prune"))
