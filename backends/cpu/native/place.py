"""Where tensors lie while a program is written, and the moves between the caller's layout and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ....compiler.backend import Array, Verdict
from . import layers as L
from .isa import Isa
from .kernels.int8_tiles import NO_BORDER, Border, Image
from .kernels.move import MoveSpec, Side
from .program import Buffer, Constant, KernelSpec, Program, Step, padded


class Unfit(Exception):
    """A layer that no kernel takes; the text says which limit and what was found."""


def fits(verdict: Verdict) -> None:
    """Refuse the layer when its kernel does."""
    if not verdict.ok:
        raise Unfit(verdict.reason)


@dataclass(frozen=True)
class View:
    """A tensor under the model's own shape: strides in elements per ONNX axis; see `dense.py`.

    Attributes:
        buffer: the caller's memory, or a buffer of ours.
        dtype: of its elements; quantized ones of ours are uint8, the caller's may be int8.
        size: elements of the buffer.
        offset: of the first element.
    """

    buffer: str
    dtype: str
    size: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def contiguous(self) -> bool:
        """Say whether the elements are the buffer in row-major order without gaps."""
        wanted = row_major(self.shape)
        if self.offset or self.size != int(np.prod(self.shape, dtype=np.int64)):
            return False
        pairs = zip(self.shape, self.strides, wanted, strict=True)
        return all(size == 1 or have == want for size, have, want in pairs)

    def side(self) -> Side:
        """Return strides as N, H, W, C."""
        n, c, *rest = self.strides
        h, w = rest or (0, 0)
        return Side(self.dtype, self.size, (n, h, w, c), self.offset)


@dataclass(frozen=True)
class Held:
    """A tensor in our layout.

    Attributes:
        buffer: name of the buffer.
        dtype: `uint8` or `float32`.
        image: geometry; for floats without border and with a pitch of whole vectors.
    """

    buffer: str
    dtype: str
    image: Image

    def side(self) -> Side:
        """Return strides as N, H, W, C."""
        i = self.image
        return Side(self.dtype, i.bytes, (i.plane, i.row, i.pitch, 1), i.origin)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a row-major array."""
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * size)
    return tuple(steps[: len(shape)])


class Builder:
    """A program being written.

    Attributes:
        isa: what the kernels may use.
        dry: only find out what is unfit; no weights are packed.
    """

    def __init__(self, isa: Isa, dry: bool, outputs: Sequence[str]) -> None:
        self.isa, self.dry, self._reserved = isa, dry, set(outputs)
        self.where: dict[str, View | Held] = {}
        self.borders: dict[str, Border] = {}
        self.pitches: dict[str, int] = {}
        self._steps: list[Step] = []
        self._buffers: dict[str, Buffer] = {}
        self._constants: list[Constant] = []
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    # --- the model's ports --------------------------------------------------------------------------

    def open_input(self, tensor: L.Tensor) -> None:
        """Make a port for a model input."""
        name = self._buffer(tensor.name, port_dtype(tensor), tensor.shape)
        self._inputs.append(name)
        size = int(np.prod(tensor.shape, dtype=np.int64))
        self.where[tensor.name] = View(name, port_dtype(tensor), size, tensor.shape, row_major(tensor.shape))

    def open_output(self, tensor: L.Tensor) -> str:
        """Make a port for a model output."""
        self._buffers[tensor.name] = Buffer(tensor.name, port_dtype(tensor), tensor.shape)
        self._outputs.append(tensor.name)
        return tensor.name

    def close_output(self, tensor: L.Tensor) -> None:
        """Write a tensor to a port of the model."""
        name = self.open_output(tensor)
        source = self.where[tensor.name]
        sizes, strides = _as_image(tensor.shape, row_major(tensor.shape))
        if isinstance(source, Held) and _nhwc(source.image) != sizes:
            # a flattened image: elements leave in the order of its channels, rows and columns
            i = source.image
            sizes = _nhwc(i)
            strides = (i.channels * i.height * i.width, i.width, 1, i.height * i.width)
        where = self.side(tensor)
        target = Side(port_dtype(tensor), int(np.prod(tensor.shape, dtype=np.int64)), strides)
        how = "shift" if where.dtype != target.dtype else "copy"
        spec = MoveSpec(sizes, where, target, how)  # type: ignore[arg-type]
        self.step("move", spec, (source.buffer,), (), name)

    def program(self) -> Program:
        """Return what has been written."""
        return Program(
            tuple(self._steps), tuple(self._buffers.values()), tuple(self._constants), tuple(self._inputs),
            tuple(self._outputs),
        )  # fmt: skip

    # --- writing ------------------------------------------------------------------------------------

    def _buffer(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        base, count = name, 0
        while name in self._buffers or name in self._reserved:
            count += 1
            name = f"{base}_{count}"
        self._buffers[name] = Buffer(name, dtype, shape)
        return name

    def is_port(self, buffer: str) -> bool:
        """Say whether a buffer is the caller's memory."""
        return buffer in self._inputs

    def dense(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Make a buffer of any shape."""
        return self._buffer(name, dtype, shape)

    def step(
        self,
        family: str,
        spec: KernelSpec,
        inputs: Sequence[str],
        constants: Sequence[str],
        output: str,
        covers: Sequence[str] = (),
        in_place: int | None = None,
        scratch: Sequence[str] = (),
        more: Sequence[str] = (),
    ) -> None:
        """Add a kernel call; `more` are further outputs."""
        self._steps.append(
            Step(
                family,
                spec,
                tuple(inputs),
                tuple(constants),
                (output, *more),
                tuple(covers),
                in_place,
                tuple(scratch),
            )
        )

    def scratch(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Make a buffer that is used during one step."""
        return self._buffer(f"{name}_scratch", dtype, shape)

    def constants(self, name: str, pack: Callable[[], Sequence[Array]]) -> tuple[str, ...]:
        """Pack constants; when only trying, none."""
        if self.dry:
            return ()
        made = [Constant.of(f"{name}_{i}", array) for i, array in enumerate(pack(), len(self._constants))]
        self._constants.extend(made)
        return tuple(constant.name for constant in made)

    def bytes_for(self, tensor: L.Tensor) -> Held:
        """Make the buffer of a quantized tensor, with the border that its readers need."""
        n, c, h, w = tensor.image
        border = self.borders.get(tensor.name, NO_BORDER)
        made = Image(n, h, w, c, self.pitches.get(tensor.name, padded(c)), border)
        return self._hold(tensor, "uint8", made)

    def floats_for(self, tensor: L.Tensor) -> Held:
        """Make the buffer of a float tensor."""
        n, c, h, w = tensor.image
        return self._hold(tensor, "float32", Image(n, h, w, c, padded(c)))

    def _hold(self, tensor: L.Tensor, dtype: str, image: Image) -> Held:
        held = Held(self._buffer(tensor.name, dtype, image.shape), dtype, image)
        self.where[tensor.name] = held
        return held

    # --- reading ------------------------------------------------------------------------------------

    def side(self, tensor: L.Tensor) -> Side:
        """Return where the elements of a tensor lie, in whatever layout."""
        where = self.where[tensor.name]
        if isinstance(where, View) and len(where.shape) not in (2, 4):
            raise Unfit(f"a tensor of {len(where.shape)} axes; the layouts have 2 and 4")
        return where.side()

    def held(self, tensor: L.Tensor) -> Held:
        """Return a tensor in our layout; the caller's is moved there once."""
        where = self.where[tensor.name]
        if isinstance(where, Held):
            return where
        if len(tensor.shape) not in (2, 4):
            raise Unfit(f"a tensor of {len(tensor.shape)} axes; images have 4, vectors 2")
        n, c, h, w = tensor.image
        # Bytes in the caller's memory are copied: kernels may read some behind the last one.
        bare = self.borders.get(tensor.name, NO_BORDER) == NO_BORDER and where.buffer not in self._inputs
        as_is = where.dtype == "float32" if tensor.quant is None else where.dtype == "uint8" and bare
        if as_is and where.contiguous and h * w == 1 and c == padded(c):
            return Held(where.buffer, where.dtype, Image(n, h, w, c, c))
        if tensor.quant is not None:
            return self._bytes_in(tensor, where)
        source = self.side(tensor)
        made = self.floats_for(tensor)
        self.move(source, where.buffer, made, (n, h, w, c), "copy")
        return made

    def _bytes_in(self, tensor: L.Tensor, where: View) -> Held:
        n, c, h, w = tensor.image
        source = self.side(tensor)
        made = self.bytes_for(tensor)
        how = "shift" if where.dtype == "int8" else "copy"
        self.move(
            source, where.buffer, made, (n, h, w, c), how, fill=tensor.quant.zero if tensor.quant else 0
        )
        return made

    def move(
        self,
        source: Side,
        buffer: str,
        made: Held,
        sizes: tuple[int, int, int, int],
        how: str,
        quants: Sequence[L.Quant | None] = (None, None),
        fill: int = 0,
        covers: Sequence[str] = (),
    ) -> None:
        """Add a move into our layout."""
        pairs = [(q.scale, q.zero) if q is not None else (1.0, 0) for q in quants]
        spec = MoveSpec(
            sizes, source, made.side(), how, pairs[0], pairs[1], made.image.border, made.image.pitch, fill,  # type: ignore[arg-type]
        )  # fmt: skip
        self.step("move", spec, (buffer,), (), made.buffer, covers)

    def image_of(self, tensor: L.Tensor) -> Held:
        """Return a held tensor that lies as its shape says; refuses flattened images."""
        held = self.held(tensor)
        i = held.image
        if (i.batch, i.channels, i.height, i.width) != tensor.image:
            raise Unfit("reads a flattened image; only convolutions and matrix products do")
        return held


def port_dtype(tensor: L.Tensor) -> str:
    """Return the dtype that the caller sees."""
    if tensor.quant is None:
        return tensor.dtype
    return "int8" if tensor.quant.signed else "uint8"


def _nhwc(i: Image) -> tuple[int, int, int, int]:
    return i.batch, i.height, i.width, i.channels


def _as_image(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Return sizes and strides in the order N, H, W, C."""
    if len(shape) not in (2, 4):
        raise Unfit(f"an output of {len(shape)} axes; the layouts have 2 and 4")
    n, c, *rest = zip(shape, strides, strict=True)
    h, w = rest or ((1, 0), (1, 0))
    return (n[0], h[0], w[0], c[0]), (n[1], h[1], w[1], c[1])
