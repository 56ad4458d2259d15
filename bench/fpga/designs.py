"""The designs that are routed: small networks of many kinds, so that an estimator can be fitted to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...backends.fpga.devices import Device
from ...compiler.ir.importer import import_model
from ..data import found_folder
from .nets import Spec, qonnx, train


@dataclass(frozen=True)
class Design:
    """What is routed.

    Attributes:
        name: of the design.
        what: in words.
        source: a network to train, or the name of a file of the shared models.
        cutoff: adders or so between registers.
        size: of the chip, as targets name it.
        family: `ecp5`, `ice40` or `xcup`.
    """

    name: str
    what: str
    source: Spec | str
    cutoff: float = 4.0
    size: str = "25k"
    family: str = "ecp5"

    @property
    def device(self) -> Device:
        """The chip."""
        package, speed = _CHIPS[self.family, self.size]
        return Device(self.size, package, speed, self.family)


_CHIPS = {
    ("ecp5", "25k"): ("CABGA256", 6),
    ("ecp5", "85k"): ("CABGA381", 6),
    ("ice40", "hx8k"): ("ct256", 0),
    ("xcup", ""): ("", 0),
}
_MLP = Spec("mlp", (16,), 3, 3, 3)
_MLP2 = Spec("mlp16_w2", (16,), 2, 2, 2)
_JETS3 = Spec("jets16_w3", (16, 8), 3, 3, 3, "jets")
_JETS8 = Spec("jets8_w3", (8,), 3, 3, 3, "jets")
_JETS4 = Spec("jets8_w4", (8,), 4, 4, 4, "jets")
_SPARSE = Spec("s16", (16,), 3, 3, 3, sparsity=0.8)
_BIN16 = Spec("bin16", (16,), 1, 1, 1)
_MLP8 = Spec("mlp8_w2", (8,), 2, 2, 2)
DESIGNS: tuple[Design, ...] = (
    Design("mlp16_w3", "digits 64-16-10, 3 bits", _MLP),
    Design("mlp16_w3_c1", "digits 64-16-10, 3 bits", _MLP, cutoff=1),
    Design("bin32", "digits 64-32-10, 1 bit", Spec("bin32", (32,), 1, 1, 1)),
    Design("mlp16_w2", "digits 64-16-10, 2 bits", _MLP2),
    Design("sparse32_w3", "digits 64-32-16-10, 3 bits, 80 % zeros",
           Spec("s32", (32, 16), 3, 3, 3, sparsity=0.8)),
    Design("jets16_w3", "jets 16-16-8-5, 3 bits", _JETS3),
    Design("mlp16_w4", "digits 64-16-10, 4 bits", Spec("mlp16_w4", (16,), 4, 4, 4)),
    Design("jets8_w6", "jets 16-8-5, 6 bits", Spec("jets8_w6", (8,), 6, 6, 6, "jets")),
    Design("cnn4_w2", "digits, two 3x3 convolutions of 4 channels, maximum, 2 bits",
           Spec("cnn4_w2", ("c4", "p", "c4", "p"), 2, 2, 2, norm=True), size="85k"),
    Design("mlp8_w8", "digits 64-8-10, 8 bits", Spec("mlp8_w8", (8,), 8, 8, 5)),
    Design("bin64", "digits 64-64-32-10, 1 bit", Spec("bin64", (64, 32), 1, 1, 1)),
    Design("mlp32_w2", "digits 64-32-10, 2 bits", Spec("mlp32_w2", (32,), 2, 2, 2)),
    Design("norm16_w4", "digits 64-16-10, 4 bits, BatchNorm", Spec("norm16_w4", (16,), 4, 4, 3, norm=True)),
    Design("jets_w4", "jets 16-64-32-32-5, 4 bits",
           Spec("jets_w4", (64, 32, 32), 4, 4, 4, "jets"), size="85k"),
    Design("sparse64_w4", "digits 64-64-10, 4 bits, 90 % zeros", Spec("s64", (64,), 4, 4, 4, sparsity=0.9)),
    Design("dw_w3", "digits, 3x3 convolution, depthwise, maxima, 3 bits",
           Spec("dw_w3", ("c4", "p", "d", "p"), 3, 3, 3, norm=True), size="85k"),
    Design("jets_w2", "jets 16-32-16-5, 2 bits", Spec("jets_w2", (32, 16), 2, 2, 4, "jets")),
    Design("mlp16_w2_c1", "digits 64-16-10, 2 bits", _MLP2, cutoff=1),
    Design("jets16_w3_c2", "jets 16-16-8-5, 3 bits", _JETS3, cutoff=2),
    Design("mlp16_w2_c8", "digits 64-16-10, 2 bits", _MLP2, cutoff=8),
    Design("mlp8_w2", "digits 64-8-10, 2 bits", _MLP8),
    Design("jets8_w3", "jets 16-8-5, 3 bits", _JETS8),
    Design("jets8_w3_c1", "jets 16-8-5, 3 bits", _JETS8, cutoff=1),
    Design("jets8_w4", "jets 16-8-5, 4 bits", _JETS4),
    Design("sparse16_w3", "digits 64-16-10, 3 bits, 80 % zeros", _SPARSE),
    Design("bin16", "digits 64-16-10, 1 bit", _BIN16),
    Design("tfc_1w1a", "MNIST 784-64-64-64-10, 1 bit (Brevitas)", "tfc_1w1a_qonnx.onnx", size="85k"),
)  # fmt: skip

_OTHERS = {
    "jets8_w3": ("jets 16-8-5, 3 bits", _JETS8), "jets8_w4": ("jets 16-8-5, 4 bits", _JETS4),
    "mlp8_w2": ("digits 64-8-10, 2 bits", _MLP8), "bin16": ("digits 64-16-10, 1 bit", _BIN16),
    "sparse16_w3": ("digits 64-16-10, 3 bits, 80 % zeros", _SPARSE),
    "mlp16_w2": ("digits 64-16-10, 2 bits", _MLP2),
}  # fmt: skip
DESIGNS += tuple(
    Design(f"{name}_{family}", what, spec, size=size, family=family)
    for family, size in (("ice40", "hx8k"), ("xcup", ""))
    for name, (what, spec) in _OTHERS.items()
)


def named(names: list[str]) -> Iterator[Design]:
    """Yield the designs of these names, all for none."""
    for design in DESIGNS:
        if not names or design.name in names:
            yield design


@dataclass(frozen=True)
class Made:
    """A design's model, the digest of its bytes, and its test accuracy in percent where it is known."""

    model: ir.Model
    digest: str
    top1: float | None


def make(design: Design) -> Made | None:
    """Return a design's model; None where it stands on a shared file that is not here (PARED_DATA)."""
    if isinstance(design.source, Spec):
        net = train(design.source)
        data = qonnx(net).SerializeToString(deterministic=True)
        return Made(import_model(data).model, hashlib.sha256(data).hexdigest()[:16], net.top1)
    path = (found_folder() or Path()) / "models" / design.source
    if not path.is_file():
        return None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Made(import_model(path).model, digest, None)
