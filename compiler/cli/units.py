"""Numbers as people read them: a value, a blank, a unit."""

from __future__ import annotations

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def count_text(value: float | None) -> str:
    """Return a count with a decimal prefix.

    >>> count_text(22610), count_text(999), count_text(None)
    ('22.6 k', '999', '-')
    """
    if value is None:
        return "-"
    for size, prefix in _DECIMAL:
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:g}"


def bytes_text(value: int | None) -> str:
    """Return a size in bytes with a binary prefix.

    >>> bytes_text(28953), bytes_text(12)
    ('28.3 KiB', '12 B')
    """
    if value is None:
        return "-"
    for size, unit in _BINARY:
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{value} B"


def seconds_text(value: float | None) -> str:
    """Return a duration given in seconds.

    >>> seconds_text(0.00137), seconds_text(4.2e-5), seconds_text(75.0)
    ('1.37 ms', '42 µs', '75 s')
    """
    if value is None:
        return "-"
    for size, unit in _TIME:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns" if value else "0 s"


def number_text(value: float | None, unit: str = "") -> str:
    """Return a plain number with four digits and its unit; `-` when there is none.

    >>> number_text(0.912345, "%"), number_text(None)
    ('0.9123 %', '-')
    """
    if value is None:
        return "-"
    return f"{value:.4g} {unit}".rstrip()


def shape_text(shape: tuple[int | str, ...]) -> str:
    """Return a shape such as `1x3x224x224`, as `--shape` takes it; `scalar` for rank 0.

    Names may hold an x, so between them stands another sign.

    >>> shape_text((1, 49, 10)), shape_text(("N", 10)), shape_text(())
    ('1x49x10', 'N × 10', 'scalar')
    """
    cross = "x" if all(isinstance(size, int) for size in shape) else " × "
    return cross.join(str(size) for size in shape) if shape else "scalar"


def plural(count: int, word: str, words: str = "") -> str:
    """Return `1 layer`, `2 layers`; `words` is the plural where an s does not make it.

    >>> plural(1, "layer"), plural(0, "layer"), plural(2, "pass", "passes")
    ('1 layer', '0 layers', '2 passes')
    """
    return f"{count} {word}" if count == 1 else f"{count} {words or word + 's'}"


def name_text(name: str, width: int = 32) -> str:
    """Return a name, a long one cut in its middle; some exporters join dozens of names into one.

    >>> name_text("conv1"), name_text("functional/batch_norm/FusedBatchNorm", width=16)
    ('conv1', 'function…tchNorm')
    """
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"
