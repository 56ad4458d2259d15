"""Engine `native`: a model compiled ahead of time into one small shared library."""
