"""The oracle that every other backend is compared with."""

from .bound import Bound, derive_bound
from .evaluator import Evaluator, evaluate

__all__ = ["Bound", "Evaluator", "derive_bound", "evaluate"]
