"""The oracle that every other backend is compared with."""

from .evaluator import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
