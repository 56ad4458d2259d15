"""What pared stands beside: torch eager and compiled, onnxruntime with CUDA, TensorRT; same weights."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from ...compiler.errors import MissingTool
from . import onnx_nets, torch_nets
from .candidate import Array, Candidate, TorchCandidate, device, event_times_ms, on_gpu, synchronize
from .nets import Net
from .products import Chain, Product

Maker = Callable[[], Candidate]
COMPILED = "torch.compile"
# Kernels timed, and the launches recorded as a CUDA graph.
MODE = "max-autotune"


def peers_of(what: Net | Chain | Product, batch: int, cache: Path, mode: str = MODE) -> Mapping[str, Maker]:
    """Return what can be built beside a program, by name, the cheap ones first; building may raise."""
    if isinstance(what, Net):
        return _net_peers(what, batch, cache, mode)
    if isinstance(what, Chain):
        x = torch.from_numpy(what.sample()).to(device(), torch.float16)
        return {
            "torch eager, fp16 weights": lambda: TorchCandidate(torch_nets.HalfChain(what, device()), x),
            "torch 4-bit kernel, bf16": lambda: TorchCandidate(
                _graphed(torch_nets.TinyGemmChain(what, device()), x.bfloat16()), x.bfloat16()
            ),
            f"{COMPILED}, fp16 weights": lambda: _compiled(torch_nets.HalfChain(what, device()), x, mode),
            COMPILED: lambda: _compiled(torch_nets.PackedChain(what, device()), x, mode),
        }
    x = torch.from_numpy(what.sample()).to(device())
    return {
        "torch._int_mm, int32 sums": lambda: TorchCandidate(torch_nets.BareInt8Product(what, device()), x),
        "torch eager": lambda: TorchCandidate(torch_nets.Int8Product(what, device()), x),
        COMPILED: lambda: _compiled(torch_nets.Int8Product(what, device()), x, mode),
    }


def _net_peers(net: Net, batch: int, cache: Path, mode: str) -> Mapping[str, Maker]:
    kind = torch.float16

    def module() -> nn.Module:
        return torch_nets.TorchNet(net, kind, device()).eval()

    def data() -> Tensor:
        return torch_nets.input_tensor(net.sample(batch), kind, device())

    return {
        "torch eager": lambda: TorchCandidate(module(), data()),
        COMPILED: lambda: _compiled(module(), data(), mode),
        "onnxruntime CUDA": lambda: OrtCandidate(net, batch, "CUDAExecutionProvider"),
        "TensorRT": lambda: TensorRtCandidate(net, batch, cache / f"{net.name}-{batch}.engine"),
    }


def _compiled(module: nn.Module, x: Tensor, mode: str) -> Candidate:
    """Compile now; in a dry run the graph is captured and run, but no code is generated."""
    if on_gpu():
        run = torch.compile(module, mode=mode, fullgraph=True)
        # Its input stays where it is, so that the recorded graph need not copy it.
        torch._dynamo.mark_static_address(x)
    else:
        run = torch.compile(module, backend="aot_eager", fullgraph=True)
    candidate = TorchCandidate(run, x, compiled=True)
    for _ in range(3):  # the second call warms up the graph's memory, the third records it
        candidate.queue()
        synchronize()
    return candidate


def _graphed(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Record a module as a CUDA graph by hand, so that launching does not hide its kernels."""
    if not on_gpu():
        return module
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        module(x)
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result: Tensor = module(x)

    def run(_: Tensor) -> Tensor:
        graph.replay()
        return result

    return run


class OrtCandidate:
    """A session of onnxruntime on torch's memory and stream, its launches recorded as a CUDA graph.

    Raises:
        MissingTool: `ort-cuda-missing`: this onnxruntime is for CPUs. A dry run takes that one.
    """

    def __init__(self, net: Net, batch: int, provider: str) -> None:
        import onnxruntime as ort

        if on_gpu() and provider not in ort.get_available_providers():
            raise MissingTool(
                "ort-cuda-missing",
                f"onnxruntime {ort.__version__} has no {provider}",
                "install onnxruntime-gpu",
            )
        kind = "float16"
        self._x = net.sample(batch).astype(kind)
        model = onnx_nets.net_model(net, batch, kind).SerializeToString()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not on_gpu():
            options.intra_op_num_threads = 1
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return
        asked = {
            "user_compute_stream": str(torch.cuda.current_stream().cuda_stream),
            "enable_cuda_graph": "1", "use_tf32": "0", "prefer_nhwc": "1",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }  # fmt: skip
        self._session = ort.InferenceSession(model, options, providers=[(provider, asked)])
        if self._session.get_providers()[0] != provider:
            raise MissingTool("ort-cuda-missing", f"onnxruntime could not start {provider}", "see its log")
        self._there = torch.from_numpy(self._x).cuda()
        sizes = [int(size) for size in self._session.get_outputs()[0].shape]
        self._result = torch.empty(sizes, dtype=torch.float16, device="cuda")
        self._binding = self._session.io_binding()
        for bind, name, tensor in (
            (self._binding.bind_input, "x", self._there), (self._binding.bind_output, "y", self._result),
        ):  # fmt: skip
            bind(name, "cuda", 0, np.float16, tuple(tensor.shape), tensor.data_ptr())
        self._run = ort.RunOptions()
        self._run.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def queue(self) -> None:
        """Queue one inference."""
        if on_gpu():
            self._session.run_with_iobinding(self._binding, self._run)
        else:
            self._session.run(None, {"x": self._x})

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's time of each inference."""
        return event_times_ms(self.queue, runs)

    def host(self) -> Array:
        """Copy in, run, copy out."""
        if not on_gpu():
            return np.asarray(self._session.run(None, {"x": self._x})[0])
        self._there.copy_(torch.from_numpy(self._x))
        self.queue()
        return np.asarray(self._result.cpu().numpy())


class TensorRtCandidate:
    """An engine that TensorRT builds from the float16 graph; kept in a file, since building takes minutes.

    Raises:
        MissingTool: `tensorrt-missing`.
    """

    def __init__(self, net: Net, batch: int, cache: Path) -> None:
        try:
            trt = importlib.import_module("tensorrt")
        except ImportError as err:
            raise MissingTool("tensorrt-missing", "the package tensorrt is not here", "install it") from err
        logger = trt.Logger(trt.Logger.ERROR)
        if not cache.exists():
            plan = _tensorrt_plan(trt, logger, onnx_nets.net_model(net, batch, "float16").SerializeToString())
            part = cache.with_suffix(f".{os.getpid()}")
            part.write_bytes(plan)
            part.rename(cache)
        self._engine = trt.Runtime(logger).deserialize_cuda_engine(cache.read_bytes())
        self._context = self._engine.create_execution_context()
        self._source = torch.from_numpy(net.sample(batch)).half()
        self._there = self._source.cuda()
        sizes = tuple(self._context.get_tensor_shape("y"))
        self._result = torch.empty(sizes, dtype=torch.float16, device="cuda")
        self._context.set_tensor_address("x", self._there.data_ptr())
        self._context.set_tensor_address("y", self._result.data_ptr())
        stream = torch.cuda.Stream()
        self._context.execute_async_v3(stream.cuda_stream)
        synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream)

    def queue(self) -> None:
        """Queue one inference."""
        self._graph.replay()

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's time of each inference."""
        return event_times_ms(self.queue, runs)

    def host(self) -> Array:
        """Copy in, run, copy out."""
        self._there.copy_(self._source)
        self.queue()
        return np.asarray(self._result.cpu().numpy())


def _tensorrt_plan(trt: ModuleType, logger: object, model: bytes) -> bytes:
    """Build an engine that computes in the types the graph has."""
    builder = trt.Builder(logger)
    strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strong)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError("TensorRT built nothing")
    return bytes(plan)
