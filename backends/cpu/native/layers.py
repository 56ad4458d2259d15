"""The fused form between ONNX and kernels: layers with their epilogues, all quantization resolved to numbers.

`read.py` makes layers from an `ir.Model`, `fuse.py` merges neighbours, `lower.py` chooses kernels. Shapes are
logical: [N, C, H, W] for images, [N, C] for vectors; where the channels lie in memory is the business of
`lower.py`. Quantized tensors are uint8: int8 ones are shifted by 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernels.bits import Code

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quant:
    """`real = float32(q - zero) * scale` with q in 0..255.

    Attributes:
        scale: the float32 scale, as a Python float.
        zero: zero point, already shifted by 128 where the model says int8.
        signed: the model says int8; matters at the model's inputs and outputs only.
    """

    scale: float
    zero: int
    signed: bool


@dataclass(frozen=True)
class Codebook:
    """What one or two bits mean: `real = scale * value` for the values of `code`."""

    code: Code
    scale: float


@dataclass(frozen=True)
class Tensor:
    """A value between layers; `quant` None means plain numbers of `dtype`, or bit planes with a `book`."""

    name: str
    shape: tuple[int, ...]
    quant: Quant | None = None
    dtype: str = "float32"
    book: Codebook | None = None

    @property
    def channels(self) -> int:
        """Size of the channel axis."""
        return self.shape[1]

    @property
    def image(self) -> tuple[int, int, int, int]:
        """Return [N, C, H, W]; a vector is an image of one pixel."""
        n, c, *rest = self.shape
        h, w = rest or (1, 1)
        return n, c, h, w


@dataclass(frozen=True)
class Window:
    """Kernel geometry of convolution and pooling; pads are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output's height and width (floor)."""
        top, left, bottom, right = self.pads
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        return (
            (height + top + bottom - reach[0]) // self.strides[0] + 1,
            (width + left + right - reach[1]) // self.strides[1] + 1,
        )


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation on tensors.

    Attributes:
        inputs: tensors read.
        output: tensor written.
        covers: ONNX nodes it stands for.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    covers: tuple[str, ...]


@dataclass(frozen=True)
class Residual:
    """A quantized Add behind a quantized layer: the layer's own result has the parameters `inner`.

    `y = saturate(rint(relu(dq(inner result) + dq(second input)) / scale) + zero)` in float32.
    """

    inner: Quant
    inner_low: int
    inner_high: int


@dataclass(frozen=True, eq=False)
class IntLayer(Layer):
    """Quantized convolution; a Gemm is one with a 1x1 window on an image of one pixel.

    Attributes:
        weight: int8 [M, C / group, kh, kw].
        bias: int32 [M], in steps of x_scale * w_scale.
        factor: float32 [M], `float32(float32(x_scale * w_scale) / y_scale)`.
        low, high: limits of the result in 0..255 (Relu and Clip are in there).
        residual: the add that is fused, with low and high those of the sum.
    """

    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    factor: Floats
    window: Window
    group: int
    low: int = 0
    high: int = 255
    residual: Residual | None = None


@dataclass(frozen=True, eq=False)
class FloatLayer(Layer):
    """Float convolution or Gemm; a second input is added before the clipping.

    Attributes:
        weight: float32 [M, C / group, kh, kw].
        bias: float32 [M].
        low, high: clipping at the end.
    """

    weight: Floats
    bias: Floats
    window: Window
    group: int
    low: float = -np.inf
    high: float = np.inf

    @property
    def clips(self) -> bool:
        """Say whether there is any clipping."""
        return self.low != -np.inf or self.high != np.inf


@dataclass(frozen=True, eq=False)
class Pool(Layer):
    """Max or average pooling, quantized or float; `count_pads`: padding counts in the average."""

    kind: str
    window: Window
    count_pads: bool = False


@dataclass(frozen=True, eq=False)
class Add(Layer):
    """Elementwise sum of two tensors of one shape, then clipping (reals, before a quantizer)."""

    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, eq=False)
class Affine(Layer):
    """`x * scale[c] + shift[c]`, then clipping, in float."""

    scale: Floats
    shift: Floats
    low: float = -np.inf
    high: float = np.inf

    @property
    def clips(self) -> bool:
        """Say whether there is any clipping."""
        return self.low != -np.inf or self.high != np.inf


@dataclass(frozen=True, eq=False)
class Clip(Layer):
    """Clipping in float (Relu has low = 0)."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Concat(Layer):
    """Joins channels; quantized inputs are requantized to the parameters of the output."""


@dataclass(frozen=True, eq=False)
class Shuffle(Layer):
    """Channel c of the output is channel `source[c]` of the input: `groups` of channels, interleaved.

    The output's shape may still be the five-dimensional one that ONNX transposes.
    """

    source: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False)
class Lrn(Layer):
    """Local response normalization across channels in float."""

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True, eq=False)
class Softmax(Layer):
    """Softmax over channels in float."""


@dataclass(frozen=True, eq=False)
class Convert(Layer):
    """Quantizes (float to uint8), dequantizes, or requantizes between different parameters."""


@dataclass(frozen=True, eq=False)
class Reshape(Layer):
    """The same elements in the same logical row-major order under another shape."""


@dataclass(frozen=True, eq=False)
class Transpose(Layer):
    """Only from or to the model's own NHWC inputs and outputs; `perm` as ONNX has it."""

    perm: tuple[int, ...]
