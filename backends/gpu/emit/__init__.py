"""From the ONNX graph to a Relax module; one function per operator, see `walk.py`."""
