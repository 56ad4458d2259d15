"""Helpers for the canonicalization tests: models from text, passes run as the manager does, comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx.parser
import onnx_ir as ir

from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.shapes import infer_shapes
from pared.compiler.ir.text import canonical_text, fingerprint
from pared.compiler.ir.verifier import verify_graph
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context, Pass, PassStats

Arrays = Mapping[str, npt.NDArray[np.generic]]


def graph(text: str, opset: int = 21, **weights: npt.NDArray[np.generic]) -> ir.Model:
    """Import a graph in ONNX text form; `weights` become initializers of those names."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "qonnx.custom_op.general" : 2]>'
    proto = onnx.parser.parse_model(header + text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array, order="C"), name))
    return import_model(proto).model


def run(before: ir.Model, *passes: Pass) -> tuple[ir.Model, PassStats]:
    """Apply passes to clones as the manager does, checks included; return the last one's account."""
    untouched = fingerprint(before)
    model, stats = before, PassStats()
    for p in passes:
        draft = model.clone()
        stats = p.apply(draft, Context())
        if stats.changed:
            infer_shapes(draft)
        else:
            assert fingerprint(draft) == fingerprint(model), f"{p.name} changed the graph and said it did not"
        verify_graph(draft)
        model = draft
    assert fingerprint(before) == untouched, "the input of a pass was edited"
    return model, stats


def ops(model: ir.Model) -> list[str]:
    """Return the operator types of the main graph in order."""
    return [node.op_type for node in model.graph]


def reasons(stats: PassStats) -> list[str]:
    return [refusal.reason for refusal in stats.refused]


def same_graph(model: ir.Model, expected: ir.Model) -> None:
    assert canonical_text(model) == canonical_text(expected)


def outputs(model: ir.Model, feeds: Arrays) -> list[npt.NDArray[np.generic]]:
    session = make_session(model, optimize="none")
    return list(run_session(session, feeds).values())


def feeds_for(model: ir.Model, seed: int = 0, dynamic: int = 2) -> dict[str, npt.NDArray[np.generic]]:
    """Make random inputs, `dynamic` for each symbolic size."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else dynamic for dim in value.shape]
        dtype = value.dtype.numpy()
        drawn = rng.uniform(-1, 1, shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[str(value.name)] = np.asarray(drawn.astype(dtype))
    return feeds


def assert_exact(before: ir.Model, after: ir.Model, dynamic: int = 2) -> None:
    """The outputs are equal bit for bit on random inputs, and are declared alike."""
    feeds = feeds_for(before, dynamic=dynamic)
    for want, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    assert_same_signature(before, after)


def assert_same_signature(before: ir.Model, after: ir.Model) -> None:
    for side in ("inputs", "outputs"):
        want = [(v.name, v.dtype, v.shape) for v in getattr(before.graph, side)]
        got = [(v.name, v.dtype, v.shape) for v in getattr(after.graph, side)]
        assert got == want


def assert_close(before: ir.Model, after: ir.Model, terms: int, scale: float) -> None:
    """The outputs differ by no more than two ways of summing may.

    A sum of k float32 products, in any order, is off by at most (k + 1) eps times the sum of their
    magnitudes; folding rounds each weight and a few scales once more (6 eps). `terms` is k, `scale`
    bounds the sum of magnitudes over both forms of the graph.
    """
    feeds = feeds_for(before)
    tolerance = 2 * (terms + 7) * float(np.finfo(np.float32).eps) * scale
    for want, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    assert_same_signature(before, after)


def rand(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def positive(*shape: int, seed: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def size_of(model: ir.Model) -> int:
    return len(to_bytes(model))


def ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)
