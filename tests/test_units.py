"""What people read."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from llmrun import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.01234, "0.0123"), (0.5, "0.500"), (3.14159, "3.14"), (9.996, "10.0"), (31.416, "31.4")),
        *((999.6, "1000"), (3141.6, "3142"), (-2.5, "-2.50"), (None, "–")),
    ],
)
def test_significant(value: float | None, text: str) -> None:
    assert units.significant(value) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "0.999 KiB"),
        (1024, "1.00 KiB"),
        (5_033_165, "4.80 MiB"),
        (24 << 30, "24.0 GiB"),
        (None, "–"),
    ],
)
def test_size(n: int | None, text: str) -> None:
    assert units.size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.000412, "412 µs"), (0.083, "83.0 ms"), (0.9997, "1.00 s"), (2.314, "2.31 s")),
        *((245, "4 min 05 s"), (119.7, "2 min 00 s"), (None, "–")),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


def test_rates_and_counts() -> None:
    assert units.rate(41.83) == "41.8 t/s" and units.rate(0.0042) == "0.00420 t/s"
    assert units.bandwidth(33.14e9) == "33.1 GB/s" and units.bandwidth(12.3e6) == "0.0123 GB/s"
    assert units.count(1_235_814_400) == "1.24 B" and units.count(4_066_560) == "4.07 M" and units.count(512) == "512"


def test_as_other_programs_print_it() -> None:
    """So many decimals, whatever the size."""
    assert units.fixed(243.1, 2) == "243.10" and units.fixed(0.00004, 3) == "0.000" and units.fixed(None, 2) == "–"


def test_the_only_place_that_rounds() -> None:
    """No other module gives a number its decimals."""
    package = Path(units.__file__).parent
    rounds = re.compile(r"""\{[^{}]*:[^{}"']*\.\d*[feg%]\}|%\.\d*[feg]""")
    found = [path.name for path in package.rglob("*.py") if rounds.search(path.read_text())]
    assert found == ["units.py"]


@pytest.mark.parametrize("written", [0.6, 0.95, 1.05, 40.0, 0.0, -1.0])
def test_decimals_of_single_precision(written: float) -> None:
    """What a GGUF file keeps in four bytes reads as it was written."""
    (kept,) = struct.unpack("f", struct.pack("f", written))
    assert units.of_single(kept) == written
