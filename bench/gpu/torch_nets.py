"""The networks and products as torch runs them: the same steps and weights as the ONNX graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .nets import Net, Option, Step
from .products import Chain, Product


class TorchNet(nn.Module):
    """A network; images lie with their channels last, as tensor cores want them.

    Args:
        net: steps and weights.
        kind: of weights and input.
        device: where it runs.
    """

    def __init__(self, net: Net, kind: torch.dtype, device: str) -> None:
        super().__init__()
        self.steps = net.steps
        self.result = net.output
        for name, array in net.weights.items():
            self.register_parameter(name, nn.Parameter(_tensor(array, kind, device), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Run the steps."""
        values = {"x": x}
        for step in self.steps:
            weights = [getattr(self, name) for name in step.weights]
            values[step.output] = _RULES[step.op](step, *(values[name] for name in step.inputs), *weights)
        return values[self.result]


def _tensor(array: np.ndarray, kind: torch.dtype, device: str) -> Tensor:
    tensor = torch.from_numpy(array).to(device, kind)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def input_tensor(array: np.ndarray, kind: torch.dtype, device: str) -> Tensor:
    """Return an input as `TorchNet` takes it fastest."""
    return _tensor(array, kind, device)


def _number(options: Mapping[str, Option], key: str) -> int:
    return int(str(options[key]))


def _conv(step: Step, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    stride, pad, groups = (_number(step.options, key) for key in ("stride", "pad", "groups"))
    return functional.conv2d(x, w, b, stride, pad, groups=groups)


def _dense(step: Step, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return torch.addmm(b, flat, w).reshape(*x.shape[:-1], w.shape[1])


def _maxpool(step: Step, x: Tensor) -> Tensor:
    size, stride, pad = (_number(step.options, key) for key in ("size", "stride", "pad"))
    return functional.max_pool2d(x, size, stride, pad)


def _norm(step: Step, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), w, b, 1e-5)


def _attention(step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = _number(step.options, "heads")
    batch, positions, width = q.shape
    q, k, v = (t.view(batch, positions, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).reshape(batch, positions, width)


_RULES: Mapping[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "dense": _dense,
    "maxpool": _maxpool,
    "norm": _norm,
    "attention": _attention,
    "mean": lambda step, x: x.mean((2, 3)),
    "relu": lambda step, x: functional.relu(x),
    "relu6": lambda step, x: functional.relu6(x),
    "gelu": lambda step, x: functional.gelu(x),
    "add": lambda step, x, y: x + y,
}


class HalfChain(nn.Module):
    """The chain with its weights made float16 beforehand: four times the bytes."""

    def __init__(self, chain: Chain, device: str) -> None:
        super().__init__()
        self.count = chain.count
        for number, matrix in enumerate(real_matrices(chain, device)):
            self.register_buffer(f"w{number}", matrix.half())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in turn."""
        for number in range(self.count):
            x = x @ getattr(self, f"w{number}")
        return x


def real_matrices(chain: Chain, device: str) -> Iterator[Tensor]:
    """Yield the chain's matrices as they are meant, float32, made on the device."""
    for codes, scales in chain.layers():
        wide = torch.from_numpy(scales).to(device).repeat_interleave(chain.block, 0)
        yield torch.from_numpy(codes).to(device).float() * wide


class PackedChain(nn.Module):
    """The chain on 4-bit weights, two in a byte; a compiler may fuse unpacking, scaling and the product."""

    def __init__(self, chain: Chain, device: str) -> None:
        super().__init__()
        self.block, self.count = chain.block, chain.count
        for number, (codes, scales) in enumerate(chain.layers()):
            wide = torch.from_numpy((codes + 8).astype(np.uint8))
            self.register_buffer(f"q{number}", (wide[::2] | (wide[1::2] << 4)).to(device))
            self.register_buffer(f"s{number}", torch.from_numpy(scales).to(device, torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        """Unpack, scale and multiply in turn."""
        for number in range(self.count):
            packed, scales = getattr(self, f"q{number}"), getattr(self, f"s{number}")
            codes = torch.stack((packed & 15, packed >> 4), 1).to(torch.float16) - 8
            blocks = codes.view(-1, self.block, x.shape[1]) * scales[:, None]
            x = x @ blocks.view(-1, x.shape[1])
        return x


class TinyGemmChain(nn.Module):
    """The chain by torch's own 4-bit kernel (`aten::_weight_int4pack_mm`), which takes bfloat16."""

    def __init__(self, chain: Chain, device: str) -> None:
        super().__init__()
        self.block, self.layers = chain.block, []
        for codes, scales in chain.layers():
            wide = torch.from_numpy(np.ascontiguousarray((codes + 8).astype(np.uint8).T)).to(device)
            packed = torch.ops.aten._convert_weight_to_int4pack(wide[:, 1::2] | (wide[:, ::2] << 4), 8)
            scale = torch.from_numpy(scales).to(device, torch.bfloat16)
            # Its codes stand for (code - 8) * scale + zero.
            self.layers.append((packed, torch.stack((scale, torch.zeros_like(scale)), 2).contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in turn."""
        for packed, scales in self.layers:
            x = torch.ops.aten._weight_int4pack_mm(x, packed, self.block, scales)
        return x


class Int8Product(nn.Module):
    """The int8 product by torch's own kernel, requantized by whatever compiles it.

    `aten::_int_mm` takes the second operand column by column faster, so it lies so.
    """

    def __init__(self, product: Product, device: str) -> None:
        super().__init__()
        self.w: Tensor
        # A buffer stays where it is, so that a recorded graph need not copy it.
        self.register_buffer("w", torch.from_numpy(np.ascontiguousarray(product.weights().T)).to(device).t())
        self.factor = float(product.factor)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and requantize."""
        total = torch._int_mm(x, self.w)
        return (total.float() * self.factor).round().clamp(-128, 127).to(torch.int8)


class BareInt8Product(Int8Product):
    """The sums alone, int32."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return torch._int_mm(x, self.w)
