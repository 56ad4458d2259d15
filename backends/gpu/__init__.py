"""Backend `gpu`: models as CUDA kernels, compiled anywhere, run where a driver is."""
