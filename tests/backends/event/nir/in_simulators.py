"""Runs a NIR file in other people's simulators: `in_simulators.py MODEL.nir IN.npz OUT.npz`.

IN has `x` [samples, steps, ...] and `dt`; OUT gets one array per simulator, sums over steps, or a text that
says why it has none. A process of its own, as these packages warn, log and start threads while they load.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

import numpy as np

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


def main(model: str, source: str, to: str, *names: str) -> None:
    import torch

    torch.set_num_threads(1)
    with np.load(source) as file:
        x, dt = torch.tensor(file["x"]), float(file["dt"])
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "norse": lambda: norse(model, x, dt),
        "spikingjelly": lambda: spikingjelly(model, x, dt),
        "sinabs": lambda: sinabs(model, x),
        "snntorch": lambda: snntorch(model, x),
    }
    found = {}
    for name in names or ("norse", "spikingjelly", "sinabs"):
        with torch.no_grad():
            found[name] = runs[name]().detach().numpy()
    np.savez(to, **found)


def norse(model, x, dt):
    import nir
    import norse.torch

    return _each_step(norse.torch.from_nir(nir.read(model), dt=dt), x)


def spikingjelly(model, x, dt):
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return _each_step(import_from_nir(model, dt=dt), x)


def sinabs(model, x):
    import nir
    from sinabs.nir import from_nir

    y = from_nir(nir.read(model), batch_size=len(x))(x.flatten(0, 1))
    y = y[0] if isinstance(y, tuple) else y
    return y.reshape(*x.shape[:2], *y.shape[1:])


def snntorch(model, x):
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
    main(*sys.argv[1:])
