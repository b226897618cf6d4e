"""What a model costs beside memory and time: its download, energy, money.

    joules of a million tokens = watts / (tokens per second) · 1e6
    money for them             = joules / 3.6e6 J per kWh · price of a kWh

docs/how-speed-is-predicted.md says where watts come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmrun.planning.predict.prediction import Prediction, Range

_MILLION = 1e6
_KWH_J = 3.6e6


@dataclass(frozen=True)
class Costs:
    """What is known of prices; None: nothing.

    Attributes:
        bytes_per_s: of downloads to this machine.
        watts: that somebody states; they count before what a prediction knows.
        price_kwh: in any currency.
    """

    bytes_per_s: float | None = None
    watts: float | None = None
    price_kwh: float | None = None

    def download_s(self, n_bytes: int) -> float | None:
        """Seconds for what is not here; 0 where all of it is."""
        if not n_bytes:
            return 0.0
        return n_bytes / self.bytes_per_s if self.bytes_per_s else None

    def joules_per_mtok(self, found: Prediction) -> Range | None:
        """Joules for a million tokens, decoded behind the first of the depths."""
        watts = self.watts or found.watts
        rate = next(iter(found.decode_tps.values()), None)
        return None if watts is None or rate is None else rate.per(watts * _MILLION)

    def price_per_mtok(self, found: Prediction) -> Range | None:
        """Money for the same."""
        joules = self.joules_per_mtok(found)
        return None if joules is None or self.price_kwh is None else joules.times(self.price_kwh / _KWH_J)
