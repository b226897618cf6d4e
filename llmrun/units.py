"""The only place that rounds: numbers with their units, for people. `None` is unknown and prints as "–".

Sizes of memory and files are binary (GiB = 2^30 bytes), bandwidths decimal (GB/s = 10^9 bytes per second), as the
field writes them.
"""

from __future__ import annotations

import math

UNKNOWN = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """A plain decimal with `digits` significant digits and never an exponent: 0.0123, 3.14, 31.4, 314, 3142."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if abs(round(value, decimals)) >= 10 ** (digits - decimals):  # 9.996 becomes 10.0, not 10.00
        decimals -= 1
    return f"{value:.{max(0, decimals)}f}"


def _scaled(value: float, step: float, units: tuple[str, ...]) -> tuple[str, str]:
    """The value in the largest unit that leaves at least 1 of it, with three digits, and that unit."""
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return significant(value), unit
        value /= step
    return significant(value), units[-1]


def size(n_bytes: float | None) -> str:
    """Bytes as B, KiB, MiB, GiB or TiB with three significant digits: `size(5_033_165)` is "4.80 MiB"."""
    if n_bytes is None:
        return UNKNOWN
    if abs(n_bytes) < 999.5:
        return f"{n_bytes:.0f} B"
    return " ".join(_scaled(n_bytes / 1024, 1024, ("KiB", "MiB", "GiB", "TiB")))


def rate(tokens_per_s: float | None) -> str:
    """Tokens per second: "41.8 t/s"."""
    return UNKNOWN if tokens_per_s is None else f"{significant(tokens_per_s)} t/s"


def bandwidth(bytes_per_s: float | None) -> str:
    """Bytes per second as decimal gigabytes: "33.1 GB/s"."""
    return UNKNOWN if bytes_per_s is None else f"{significant(bytes_per_s / 1e9)} GB/s"


def duration(seconds: float | None) -> str:
    """Seconds as "412 µs", "83.0 ms", "2.31 s" or "4 min 05 s"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 99.95:
        return " ".join(_scaled(seconds * 1e6, 1000, ("µs", "ms", "s")))
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"


def ago(seconds: float | None) -> str:
    """ "just now", "5 minutes ago", "yesterday", "3 weeks ago"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return "just now"
    for unit, length, limit in (("minute", 60, 60), ("hour", 3600, 24), ("day", 86_400, 14), ("week", 604_800, 9)):
        n = int(seconds // length)
        if n < limit:
            return "yesterday" if (unit, n) == ("day", 1) else f"{n} {unit}{'s' if n > 1 else ''} ago"
    n = int(seconds // 2_629_800)
    return f"{n} months ago" if n < 24 else f"{n // 12} years ago"


def count(n: float | None) -> str:
    """Parameters and tokens as people say them: "1.24 B", "4.10 M", "512"."""
    if n is None:
        return UNKNOWN
    if abs(n) < 999.5:
        return f"{n:.0f}"
    return " ".join(_scaled(n / 1000, 1000, ("K", "M", "B", "T")))


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share of one: "41.5 %"; signed, as an error is: "+0.02 %"."""
    if share is None:
        return UNKNOWN
    shown = f"{share * 100:+.2f}" if signed else significant(share * 100)
    return f"{shown} %"


def fixed(value: float | None, decimals: int) -> str:
    """So many decimals, as other programs print the same figure: "243.10"."""
    return UNKNOWN if value is None else f"{value:.{decimals}f}"


def of_single(value: float) -> float:
    """The decimal that was written where single precision kept it: 0.6 of 0.6000000238418579."""
    return float(f"{value:.7g}")
