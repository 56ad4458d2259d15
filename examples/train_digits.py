"""Train the small models that the demo and the tests stand on, from scikit-learn's bundled digits.

Writes `models/digits_{mlp,cnn,resnet}.onnx` and `data/digits_{calibration,test}.npz`. The results are
committed; run this only to make them anew:

    pip install '.[train,dev]' && python examples/train_digits.py

The split is fixed: 1,257 images to train on, 540 to test; calibration data is 128 of the training images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(x + body(x))."""
        return torch.relu(x + self.body(x))


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with batch normalization."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


def models() -> dict[str, nn.Module]:
    """Return the untrained models; the input is [N, 1, 8, 8] with values 0..1."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return {
        "digits_mlp": nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
        "digits_cnn": nn.Sequential(
            conv(1, 32), nn.ReLU(), conv(32, 64), nn.ReLU(), nn.MaxPool2d(2), conv(64, 64), nn.ReLU(), *head
        ),
        "digits_resnet": nn.Sequential(
            conv(1, 64), nn.ReLU(), Residual(64), nn.MaxPool2d(2), conv(64, 64, groups=64), nn.ReLU(),
            nn.Conv2d(64, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        ),
    }  # fmt: skip


def digits() -> Split:
    """Return train images, test images, train labels, test labels."""
    images, labels = load_digits(return_X_y=True)
    scaled = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        scaled, labels, test_size=540, random_state=0, stratify=labels
    )
    return train, test, train_labels, test_labels


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, shift: int, epochs: int = 40) -> None:
    """Fit with Adam and a cosine schedule; shifts by up to `shift` pixels augment the data."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            offset = [int(s) for s in torch.randint(-shift, shift + 1, (2,))]
            loss = nn.functional.cross_entropy(model(torch.roll(x[batch], offset, (2, 3))), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def export(model: nn.Module, path: Path) -> None:
    """Write the model as ONNX, opset 17, with a symbolic batch dimension and BatchNormalization kept."""
    torch.onnx.export(
        model.eval(), (torch.zeros(1, 1, 8, 8),), str(path), opset_version=17, dynamo=False,
        input_names=["image"], output_names=["logits"], dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    onnx.checker.check_model(onnx.load(path), full_check=True)


def main() -> None:
    """Train, report test accuracy, write everything."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    images, test, labels, test_labels = digits()
    for name, model in models().items():
        train(model, images, labels, shift=0 if name == "digits_mlp" else 1)
        model.eval()
        with torch.no_grad():
            top1 = float((model(torch.from_numpy(test)).argmax(1).numpy() == test_labels).mean())
        export(model, HERE / "models" / f"{name}.onnx")
        print(f"{name}: top-1 {100 * top1:.2f} % on {len(test)} test images")
    np.savez_compressed(HERE / "data" / "digits_calibration.npz", image=images[:128])
    np.savez_compressed(HERE / "data" / "digits_test.npz", image=test, labels=test_labels)


if __name__ == "__main__":
    main()
