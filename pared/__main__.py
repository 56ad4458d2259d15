"""`python -m pared` is the command `pared`."""

from __future__ import annotations

import sys

from .compiler.cli.app import main

sys.exit(main())
