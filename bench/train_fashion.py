"""Trains the Fashion-MNIST nets of bench/prune_accuracy.py; needs torch, which pared does not.

    PARED_DATA=… python bench/train_fashion.py OUT [--epochs 6]

Writes OUT/fashion_cnn.onnx (three convolutions with BatchNorm, 24 thousand parameters) and
OUT/fashion_mlp.onnx (784-256-128-10). Inputs are pixels / 255. The seed is fixed; on another
machine figures differ by rounding.
"""

from __future__ import annotations

import argparse
import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn


def read(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images `[n, 1, 28, 28]` in 0..1 and labels."""

    def idx(name: str, offset: int) -> np.ndarray:
        raw = gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(raw, np.uint8, offset=offset)

    images = idx("images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(images), torch.from_numpy(idx("labels-idx1", 8).astype(np.int64))


def cnn() -> nn.Module:
    """Three convolutions with BatchNorm, then the mean over positions."""
    layers: list[nn.Module] = []
    for before, after, pool in ((1, 16, True), (16, 32, True), (32, 64, False)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    """Three dense layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Adam with one cycle of the learning rate; random horizontal flips."""
    batch = 128
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            x = images[rows]
            flipped = torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(3), x)
            loss = nn.functional.cross_entropy(model(flipped), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Train, score and export both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    folder = Path(os.environ["PARED_DATA"]) / "datasets" / "fashion_mnist"
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, make in (("mlp", mlp), ("cnn", cnn)):
        torch.manual_seed(0)
        model = make()
        train(model, *read(folder, "train"), options.epochs)
        images, labels = read(folder, "t10k")
        model.eval()
        with torch.no_grad():
            right = (model(images).argmax(1) == labels).float().mean().item()
        path = options.out / f"fashion_{name}.onnx"
        torch.onnx.export(
            model, (images[:1],), path, input_names=["image"], output_names=["logits"], dynamo=False,
            opset_version=17, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
        print(f"{path}: {100 * right:.2f} % of {len(labels)}", flush=True)


if __name__ == "__main__":
    main()
