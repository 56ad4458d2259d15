"""Runs NIR files in other people's simulators: `in_simulators.py JOBS.json`.

Each job has `model`, `source` (.npz with `x` [samples, steps, ...]), `dt`, `names` of simulators and `to`,
the .npz that gets one array [samples, steps, ...] per simulator. A process of its own, as these packages
warn, log and start threads while they load; one for all jobs, as loading takes seconds.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


def main(jobs: str) -> None:
    import torch

    torch.set_num_threads(1)
    runs = {"norse": norse, "spikingjelly": spikingjelly, "sinabs": sinabs, "snntorch": snntorch}
    for job in json.loads(Path(jobs).read_text()):
        with np.load(job["source"]) as file, torch.no_grad():
            x = torch.tensor(file["x"])
            found = {name: runs[name](job["model"], x, job["dt"]).numpy() for name in job["names"]}
        np.savez(job["to"], **found)


def norse(model, x, dt):
    import nir
    import norse.torch

    return _each_step(norse.torch.from_nir(nir.read(model), dt=dt), x)


def spikingjelly(model, x, dt):
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return _each_step(import_from_nir(model, dt=dt), x)


def sinabs(model, x, dt):
    import nir
    from sinabs.nir import from_nir

    y = from_nir(nir.read(model), batch_size=len(x))(x.flatten(0, 1))
    y = y[0] if isinstance(y, tuple) else y
    return y.reshape(*x.shape[:2], *y.shape[1:])


def snntorch(model, x, dt):
    import contextlib
    import io

    import nir
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        net = import_from_nir(nir.read(model))
    return _each_step(net, x)


def _each_step(net, x):
    import torch

    outputs, state = [], None
    for step in range(x.shape[1]):
        y, state = net(x[:, step], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


if __name__ == "__main__":
    main(sys.argv[1])
