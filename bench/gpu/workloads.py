"""What is measured, and at which sizes: full ones on a GPU, tiny ones in dry runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import nets
from .products import Chain, Product

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Workload:
    """A network, the chain of 4-bit products, or the int8 product.

    Attributes:
        name: in commands and results.
        title: on the page.
        make: full size, `tiny`: the same code in a moment.
        precisions: that pared compiles it in.
        batches: sizes measured.
    """

    name: str
    title: str
    make: Callable[[], nets.Net | Chain | Product]
    tiny: Callable[[], nets.Net | Chain | Product]
    precisions: tuple[str, ...] = ("fp16",)
    batches: tuple[int, ...] = (1, 64)

    def sized(self, *, tiny: bool) -> nets.Net | Chain | Product:
        """Return it in full or tiny size."""
        return self.tiny() if tiny else self.make()


_LIST = (
    Workload(
        "resnet50", "ResNet-50",
        nets.resnet50, lambda: nets.resnet50(32, 8, (1, 1, 1, 1)), ("fp16", "int8"),
    ),
    Workload(
        "mobilenet_v2", "MobileNetV2",
        nets.mobilenet_v2, lambda: nets.mobilenet_v2(32, 64, ((1, 16, 1, 1), (2, 16, 2, 2))),
        ("fp16", "int8"),
    ),
    Workload("bert", "BERT-base encoder, 128 positions", nets.encoder, lambda: nets.encoder(1, 32, 2, 8)),
    Workload(
        "gemv_b32", "GEMV 4096x4096, 4-bit weights in blocks of 32",
        lambda: Chain(block=32), lambda: Chain(128, 32, 2), ("w4a16",), (1,),
    ),
    Workload(
        "gemv_b128", "GEMV 4096x4096, 4-bit weights in blocks of 128",
        lambda: Chain(block=128), lambda: Chain(128, 128, 2), ("w4a16",), (1,),
    ),
    Workload("gemm", "int8 GEMM 4096x4096x4096", Product, lambda: Product(64), ("int8",), (1,)),
)  # fmt: skip
WORKLOADS: Mapping[str, Workload] = {item.name: item for item in _LIST}


def sample_of(what: nets.Net | Chain | Product, batch: int) -> Array:
    """Return the input that everything is checked and measured with."""
    return what.sample(batch) if isinstance(what, nets.Net) else what.sample()
