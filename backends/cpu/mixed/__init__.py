"""Engine `mixed`: regions of a model in engine `native`, the rest in engine `ort`; see ../README.md."""
