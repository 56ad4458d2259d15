"""Measures a NIR chain of Affine, Conv2d and IF by NeuroBench: `in_neurobench.py M.nir IN.npz OUT.json`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")


def main(model: str, source: str, to: str) -> None:
    import torch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel
    from torch.utils.data import DataLoader, TensorDataset

    class Fire(torch.nn.Module):
        def __init__(self, threshold: np.ndarray) -> None:
            super().__init__()
            self.threshold = torch.tensor(threshold)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x > self.threshold).float()

    torch.set_num_threads(1)
    with np.load(source) as file:
        x = torch.tensor(file["x"])
    net = TorchModel(torch.nn.Sequential(*_modules(model, Fire)))
    net.add_activation_module(Fire)
    data = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=16)
    found = Benchmark(net, data, [], [], [[], [ActivationSparsity, SynapticOperations]]).run(quiet=True)
    Path(to).write_text(json.dumps(found))


def _modules(path: str, fire: type) -> list:
    import nir
    import torch

    graph = nir.read(path)
    following, name, modules = dict(graph.edges), "input", []
    while (name := following[name]) != "output":
        node = graph.nodes[name]
        if isinstance(node, nir.IF):
            modules.append(fire(node.v_threshold))
            continue
        weight = torch.tensor(node.weight)
        if isinstance(node, nir.Affine):
            module = torch.nn.Linear(weight.shape[1], weight.shape[0])
        else:
            sizes = weight.shape[1], weight.shape[0], tuple(weight.shape[2:])
            module = torch.nn.Conv2d(*sizes, tuple(node.stride), tuple(node.padding), tuple(node.dilation))
        module.weight.data, module.bias.data = weight, torch.tensor(node.bias)
        modules.append(module)
    return modules


if __name__ == "__main__":
    main(*sys.argv[1:])
