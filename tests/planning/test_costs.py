"""Download, energy and money, by hand."""

from __future__ import annotations

import pytest

from llmrun.planning.predict.costs import Costs
from llmrun.planning.predict.prediction import Prediction, Range


def found(watts: float | None = None, rate: Range | None = Range(8.0, 10.0, 12.5)) -> Prediction:  # noqa: B008
    return Prediction(True, 0, 4096, {}, None, {0: rate, 4096: Range(1.0, 1.0, 1.0)}, watts=watts)


def test_a_download() -> None:
    """1 GB at 20 MB/s is 50 s; what is here takes no time, and without a rate nothing is known."""
    assert Costs(bytes_per_s=20e6).download_s(10**9) == 50
    assert Costs(bytes_per_s=20e6).download_s(0) == Costs().download_s(0) == 0
    assert Costs().download_s(1) is None


def test_energy() -> None:
    """100 W at 10 t/s, behind the first depth, are 10 J a token; at the highest rate the least."""
    assert Costs().joules_per_mtok(found(100)) == Range(8e6, 10e6, 12.5e6)
    assert (
        Costs(watts=50).joules_per_mtok(found(100))
        == Costs(watts=50).joules_per_mtok(found())
        == Range(4e6, 5e6, 6.25e6)
    )
    assert Costs().joules_per_mtok(found()) is None and Costs(watts=50).joules_per_mtok(found(rate=None)) is None


def test_money() -> None:
    """3.6 MJ are a kWh: 10 MJ at 0.36 a kWh are 1."""
    price = Costs(price_kwh=0.36).price_per_mtok(found(100))
    assert price is not None and (price.low, price.mid, price.high) == pytest.approx((0.8, 1.0, 1.25))
    free = Costs(price_kwh=0).price_per_mtok(found(100))
    assert free == Range(0, 0, 0)
    assert Costs().price_per_mtok(found(100)) is None and Costs(price_kwh=1).price_per_mtok(found()) is None
