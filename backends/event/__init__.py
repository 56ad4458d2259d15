"""Event-driven execution of quantized models: lowering to event layers, and an engine that skips zeros."""
