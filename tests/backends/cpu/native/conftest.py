"""PARED_TEST_ISA="avx2 fma" pytest tests/backends/cpu/native: the tests as on a lesser CPU."""

import os
from dataclasses import replace

from pared.backends.cpu.native import isa
from pared.compiler.machine import find_machine

if "PARED_TEST_ISA" in os.environ:
    lesser = replace(find_machine(), cpu_features=tuple(os.environ["PARED_TEST_ISA"].split()))
    isa.find_machine = lambda: lesser
