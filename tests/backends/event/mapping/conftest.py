"""Lets the tests here use the models of the folder above."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
