"""Measurements of the CPU engine `native`, each beside its peers in the same interleaved run."""
