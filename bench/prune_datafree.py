"""Channels pruned without data: naive, with the linear repair of the paper, with rectified statistics.

    PARED_DATA=… python -m pared.bench.prune_datafree [--fashion DIR] [--page docs/results/prune_datafree.md]

30 % of the channels of every pair of layers go, those with the smallest norm; then weights are rounded to 6
bits per channel (`quantize{bits=6 act=none}`), with what `prune-datafree` knows of it. `linear` is the closed
form of Unified Data-Free Compression (arXiv 2308.07209) on folded weights; `rectified` also has what
BatchNorm knows of the channels, where the file still has such nodes. Scores as in prune_accuracy.md. No
calibration data.
Exit code 1 when naive pruning and quantization is better anywhere by more than 0.5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..compiler.ir.walk import all_nodes
from .data import data_folder
from .prune_accuracy import UNITS, nets, run, score_text
from .results import Page

_ROUND = ",quantize{bits=6 act=none}"
VARIANTS: Mapping[str, str] = {
    "naive": "canonicalize,prune-datafree{repair=false}",
    "linear": "canonicalize,prune-datafree",
    "rectified": "estimate-channels,canonicalize,prune-datafree",
    "6 bit": "canonicalize" + _ROUND,
    "naive, 6 bit": "canonicalize,prune-datafree{repair=false}" + _ROUND,
    "linear, 6 bit": "canonicalize,prune-datafree{bits=6}" + _ROUND,
    "rectified, 6 bit": "estimate-channels,canonicalize,prune-datafree{bits=6}" + _ROUND,
}
_MODELS = (
    "kws_cnn_s", "kws_dnn_s", "mnist_conv8", "ic01_resnet8", "resnet20_cifar10", "ad01_fc_autoencoder",
    "fashion_cnn", "fashion_mlp",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="folder with fashion_cnn.onnx and fashion_mlp.onnx")
    parser.add_argument("--page", type=Path, default=Path("prune_datafree.md"))
    options = parser.parse_args(arguments)
    folder = data_folder()
    found = nets(folder, options.fashion, first="fold-branches")
    page = Page(options.page, "Channels without data", __doc__ or "", ("model", "score", "dense", *VARIANTS))
    worse = 0
    for name in _MODELS:
        if name not in found:
            continue
        net = found[name]()
        reference = net.outputs(net.model)
        told = any(node.op_type == "BatchNormalization" for node in all_nodes(net.model))
        scores = {
            key: net.score(run(net.model, text, None), reference)
            for key, text in VARIANTS.items()
            if told or "rectified" not in key
        }
        best = scores.get("rectified, 6 bit", scores["linear, 6 bit"])
        worse += best < scores["naive, 6 bit"] - 0.5
        cells = [score_text(scores[key]) if key in scores else "no BatchNorm" for key in VARIANTS]
        page.add(name, UNITS[net.kind], score_text(net.score(net.model, reference)), *cells)
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
