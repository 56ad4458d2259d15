"""What a float32 kernel does with a sum before it stores it: bias, residual, activation, in this order."""

from __future__ import annotations

from dataclasses import dataclass

# Functions of one value; their formulas and errors are in math_f32.py.
FUNCTIONS = (
    "sigmoid", "tanh", "silu", "hard-sigmoid", "hard-swish", "gelu", "gelu-tanh", "exp", "elu", "leaky-relu",
    "softplus", "erf-gate", "tanh-gate",
)  # fmt: skip


@dataclass(frozen=True)
class After:
    """Epilogue: y = clip(f(sum + bias + residual)).

    Attributes:
        bias: whether a bias per output channel is a constant of the kernel.
        residual: whether a second input of the output's layout is added.
        function: one of `FUNCTIONS`, or empty.
        alpha: parameter of `leaky-relu`, `elu` and `hard-sigmoid`.
        beta: offset of `hard-sigmoid`.
        low: lower clip bound; 0 is a Relu.
        high: upper clip bound.
    """

    bias: bool = False
    residual: bool = False
    function: str = ""
    alpha: float = 0.0
    beta: float = 0.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.function and self.function not in FUNCTIONS:
            raise ValueError(f"unknown function {self.function!r}; known: {FUNCTIONS}")
