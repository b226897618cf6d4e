"""The only place that rounds: numbers with their units, for people. `None` is unknown and prints as "–".

Sizes of memory and files are binary (GiB = 2^30 bytes), bandwidths decimal (GB/s = 10^9 bytes per second), as the
field writes them.
"""

from __future__ import annotations

UNKNOWN = "–"


def size(n_bytes: float | None) -> str:
    """Bytes as B, KiB, MiB or GiB with three significant digits: `size(5_033_165)` is "4.80 MiB"."""
    if n_bytes is None:
        return UNKNOWN
    value, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 999.5 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{significant(value)} {unit}"


def significant(value: float | None, digits: int = 3) -> str:
    """A plain decimal with `digits` significant digits and never an exponent: 3.14, 31.4, 314, 3142."""
    if value is None:
        return UNKNOWN
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:.{max(0, digits - whole)}f}"


def rate(tokens_per_s: float | None) -> str:
    """Tokens per second: "41.8 t/s"."""
    return UNKNOWN if tokens_per_s is None else f"{significant(tokens_per_s)} t/s"


def bandwidth(bytes_per_s: float | None) -> str:
    """Bytes per second as decimal gigabytes: "33.1 GB/s"."""
    return UNKNOWN if bytes_per_s is None else f"{significant(bytes_per_s / 1e9)} GB/s"


def duration(seconds: float | None) -> str:
    """Seconds as "412 µs", "83 ms", "2.31 s" or "4 min 05 s"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{significant(seconds * 1e3)} ms"
    if seconds < 100:
        return f"{significant(seconds)} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def count(n: float | None) -> str:
    """Parameters and tokens as people say them: "1.24 B", "4.10 M", "512"."""
    if n is None:
        return UNKNOWN
    for divisor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if abs(n) >= divisor * 0.9995:
            return f"{significant(n / divisor)}{unit}"
    return f"{n:.0f}"
