"""Execution providers of onnxruntime beside the CPU's: in charge of every node, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import MissingTool, UnsupportedOp

if TYPE_CHECKING:
    import onnxruntime

# Of a session: nodes that no provider takes are an error and not run on the CPU.
NO_CPU = ("session.disable_cpu_ep_fallback", "1")


@dataclass(frozen=True)
class Provider:
    """An execution provider of onnxruntime, such as `CUDAExecutionProvider`, and its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


def has_provider(name: str) -> bool:
    """Tell whether this build of onnxruntime has an execution provider."""
    import onnxruntime

    return name in onnxruntime.get_available_providers()


def need_provider(name: str) -> None:
    """Raise `MissingTool` where this build of onnxruntime lacks an execution provider."""
    if not has_provider(name):
        raise MissingTool(
            "ort-provider-missing",
            f"onnxruntime {_version()} as installed has no {name}",
            "install a build that has it (for CUDA the package onnxruntime-gpu), or use another engine",
        )


def check_started(session: onnxruntime.InferenceSession, provider: Provider) -> None:
    """Raise `MissingTool` where onnxruntime dropped a provider because its libraries do not load."""
    if session.get_providers()[0] != provider.name:
        raise MissingTool(
            "ort-provider-missing",
            f"onnxruntime {_version()} could not start {provider.name}",
            "install the libraries that it needs (CUDA, cuDNN); onnxruntime's log names them",
        )


def check_taken(provider: Provider, err: Exception) -> None:
    """Raise `UnsupportedOp` where a session was not made because nodes would run on the CPU."""
    if "fallback to CPU EP" in str(err):
        raise UnsupportedOp(
            "ort-provider-refused",
            f"{provider.name} of onnxruntime {_version()} leaves nodes of this model to the CPU",
            "fix open sizes with --shape, or use another engine",
        ) from err


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
