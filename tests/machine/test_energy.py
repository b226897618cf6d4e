"""Joules: counters that are files of our own and a driver that says what it likes, added up by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_machine import Clock, FakeNvml
from waiting import until

from llmrun.bench.record import Row, Sample, Steps
from llmrun.bench.spec import Test
from llmrun.machine import energy
from llmrun.machine.energy import Energy, EnergyMeter, Joules, cost_per_million_tokens, measure_idle
from llmrun.machine.nvml import NoGpus

NO_GPUS = NoGpus("there is no NVIDIA driver")


class Zones:
    """A /sys/class/powercap: `zones.add("intel-rapl:0", "package-0", uj=5)`, then `zones.set("intel-rapl:0", 7)`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, zone: str, name: str, uj: int = 0, wraps_at: int | None = 1_000_000_000) -> None:
        (self.root / zone).mkdir(parents=True)
        (self.root / zone / "name").write_text(f"{name}\n")
        if wraps_at is not None:
            (self.root / zone / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        self.set(zone, uj)

    def set(self, zone: str, uj: int) -> None:
        (self.root / zone / "energy_uj").write_text(f"{uj}\n")


@pytest.fixture
def zones(tmp_path: Path) -> Zones:
    return Zones(tmp_path / "powercap")


def opened(zones: Zones) -> Joules:
    return Joules.open(NO_GPUS, powercap=zones.root)


def test_boundaries_by_name(zones: Zones) -> None:
    """Widest first; the memory-mapped interface's copy of the package is not counted again."""
    zones.add("intel-rapl:0", "package-0")
    zones.add("intel-rapl:0:0", "core")
    zones.add("intel-rapl:0:1", "dram")
    zones.add("intel-rapl:1", "psys")
    zones.add("intel-rapl-mmio:0", "package-0")
    joules = opened(zones)
    for zone, uj in (("0", 3_000_000), ("0:0", 2_000_000), ("0:1", 500_000), ("1", 9_000_000)):
        zones.set(f"intel-rapl:{zone}", uj)
    assert list(joules.read().items()) == [
        ("whole machine", 9.0),
        ("CPU package", 3.0),
        ("RAM", 0.5),
        ("CPU cores", 2.0),
    ]
    assert joules.method("RAM") == "RAPL"


def test_two_sockets_are_one_boundary(zones: Zones) -> None:
    """Three joules on one and four on the other are seven."""
    zones.add("intel-rapl:0", "package-0", 1_000_000)
    zones.add("intel-rapl:1", "package-1", 2_000_000)
    joules = opened(zones)
    zones.set("intel-rapl:0", 4_000_000)
    zones.set("intel-rapl:1", 6_000_000)
    assert joules.read() == {"CPU package": 7.0}


def test_a_counter_wraps(zones: Zones) -> None:
    """From 8 J through 10 J to 1 J are 3 J; and a second round is counted as well."""
    zones.add("intel-rapl:0", "package-0", 8_000_000, wraps_at=10_000_000)
    joules = opened(zones)
    zones.set("intel-rapl:0", 1_000_000)
    assert joules.read() == {"CPU package": 3.0}
    zones.set("intel-rapl:0", 500_000)
    assert joules.read() == {"CPU package": 12.5}


def test_a_wrap_that_nobody_tells_of(zones: Zones) -> None:
    """A counter that goes back without a known range is unknown from then on, not negative."""
    zones.add("intel-rapl:0", "package-0", 8_000_000, wraps_at=None)
    joules = opened(zones)
    zones.set("intel-rapl:0", 1_000_000)
    assert joules.read() == {} == joules.read()
    assert "went back" in joules.unknown["CPU package"]


def test_only_root_may_read(zones: Zones) -> None:
    """No joules, the reason once, and the command that changes it."""
    zones.add("intel-rapl:0", "package-0")
    zones.add("intel-rapl:0:0", "core")

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":  # who runs the tests may be root, whom no mode keeps out
            raise PermissionError(13, "Permission denied")
        return path.read_text()

    joules = Joules.open(NO_GPUS, powercap=zones.root, read=refuse)
    assert joules.counters == {}
    assert joules.why_not == (
        f"RAPL: only root may read the counters: sudo chmod a+r {zones.root}/*/energy_uj; there is no NVIDIA driver"
    )
    meter = EnergyMeter(joules)
    with meter:
        pass
    assert meter.result() == joules.why_not


def test_half_of_two_sockets_is_unknown(zones: Zones) -> None:
    """Where one of two can't be read, neither is told."""
    zones.add("intel-rapl:0", "package-0")
    zones.add("intel-rapl:1", "package-1")
    zones.add("intel-rapl:1:0", "core")
    (zones.root / "intel-rapl:1" / "energy_uj").unlink()
    joules = opened(zones)
    assert list(joules.counters) == ["CPU cores"] and "CPU package" in joules.unknown


def test_no_counters_at_all(tmp_path: Path) -> None:
    """A virtual machine: words."""
    joules = Joules.open(NO_GPUS, powercap=tmp_path / "nowhere")
    assert joules.why_not == "RAPL: this machine shows no counters; there is no NVIDIA driver"
    assert joules.read() == {} == measure_idle(joules, 60)


def test_gpus_count_by_themselves(tmp_path: Path) -> None:
    """1000 J and 2000 J since the driver was loaded are nobody's; 5 J and 7 J since then are ours."""
    nvml = FakeNvml()
    joules = Joules.open(nvml, powercap=tmp_path)
    nvml.energy = [1005.0, 2007.0]
    assert joules.read() == {"GPU 0": 5.0, "GPU 1": 7.0}
    assert joules.method("GPU 0") == "NVML" and joules.look_s == energy.LOOK_S


def test_power_is_added_up(tmp_path: Path) -> None:
    """Without a counter: 2 s from 100 W to 200 W are 300 J, 1 s at 200 W is 200 J more."""
    nvml, clock = FakeNvml(broken=frozenset({"energy_j"})), Clock()
    joules = Joules.open(nvml, powercap=tmp_path, clock=clock)
    nvml.power, clock.now = [200.0, 50.0], 2.0
    assert joules.read() == {"GPU 0": 300.0, "GPU 1": 100.0}
    clock.now = 3.0
    assert joules.read() == {"GPU 0": 500.0, "GPU 1": 150.0}
    assert joules.method("GPU 0") == "NVML power" and joules.look_s == energy.POWER_LOOK_S


def test_a_driver_that_tells_nothing(tmp_path: Path) -> None:
    """Neither counter nor power: unknown, GPU by GPU; a driver that breaks down in the middle as well."""
    silent = Joules.open(FakeNvml(broken=frozenset({"energy_j", "power_w"})), powercap=tmp_path)
    assert silent.counters == {} and silent.unknown["GPU 1"] == "power_w: Not Supported"
    assert "n_gpus: Not" in Joules.open(FakeNvml(broken=frozenset({"n_gpus"})), powercap=tmp_path).unknown["NVML"]
    nvml = FakeNvml()
    joules = Joules.open(nvml, powercap=tmp_path)
    nvml.broken = frozenset({"energy_j"})
    assert joules.read() == {} and joules.unknown["GPU 0"] == "energy_j: Not Supported"


def test_windows_are_added_up(zones: Zones) -> None:
    """Two windows of 2 s and 3 s with 10 J and 20 J; what comes between is nobody's. At rest the machine takes 4 W."""
    zones.add("intel-rapl:0", "package-0")
    joules, clock = opened(zones), Clock()

    def rest(seconds: float) -> None:
        clock.now += seconds
        zones.set("intel-rapl:0", 6_000_000)

    idle_w = measure_idle(joules, 1.5, sleep=rest, clock=clock)
    assert idle_w == {"CPU package": 4.0}
    meter = EnergyMeter(joules, idle_w, clock=clock)
    for seconds, before, after in ((2.0, 100, 110), (3.0, 200, 220)):
        zones.set("intel-rapl:0", before * 1_000_000)
        with meter:
            clock.now += seconds
            zones.set("intel-rapl:0", after * 1_000_000)
        clock.now += 100
    assert meter.result() == (Energy("CPU package", 30.0, "RAPL", idle_w=4.0, seconds=5.0),)
    assert [each.above_idle_j for each in meter.result() if isinstance(each, Energy)] == [10.0]


def test_a_counter_that_fails_in_a_window_is_left_out(tmp_path: Path) -> None:
    """Joules of half the windows would be too few."""
    nvml = FakeNvml()
    joules = Joules.open(nvml, powercap=tmp_path)
    meter = EnergyMeter(joules)
    with meter:
        nvml.energy = [1010.0, 2010.0]
    nvml.broken = frozenset({"energy_j"})
    with meter:
        pass
    assert isinstance(meter.result(), str) and meter.joules == {}


def test_the_thread_looks_meanwhile(tmp_path: Path) -> None:
    """Power that was high only in the middle of a window is seen: it is looked at several times."""
    nvml = FakeNvml(broken=frozenset({"energy_j"}), power=[0.0, 0.0])
    joules = Joules.open(nvml, powercap=tmp_path)
    meter = EnergyMeter(joules)
    with meter:
        nvml.power = [1000.0, 0.0]
        until(lambda: joules.counters["GPU 0"][0]._total_j, "a look")  # type: ignore[union-attr]
        nvml.power = [0.0, 0.0]
    assert meter.joules["GPU 0"] > 0 and meter.joules["GPU 1"] == 0


def test_nothing_measured() -> None:
    assert EnergyMeter(Joules()).result() == "nothing was measured"


def test_joules_of_a_token() -> None:
    """Two samples of five tokens: 30 J are 3 J each; 4 W over 5 s were the machine's own, which leaves 1 J."""
    sample = Sample(steps=Steps.of([0.5] * 5))
    row = Row(Test("tg", n_gen=5), samples=(sample, sample), energy=(Energy("RAM", 30.0, "RAPL", 4.0, 5.0),))
    assert row.joules_per_token == {"RAM": 3.0}
    assert row.joules_above_idle_per_token == {"RAM": 1.0}
    unknown = replace(row, energy=(Energy("RAM", 30.0, "RAPL"),))
    assert unknown.joules_above_idle_per_token is None


@pytest.mark.parametrize(
    ("joules", "tps", "kwh", "hour", "cost"),
    [
        (3.6, None, 0.30, None, 0.30),  # a million tokens are one kWh
        (None, 1000.0, None, 3.6, 1.0),  # 1000 s at 3.60 an hour
        (3.6, 1000.0, 0.30, 3.6, 1.3),
        (None, 1000.0, 0.30, 3.6, None),  # a part that is unknown leaves the sum unknown
        (3.6, None, 0.30, 3.6, None),
        (3.6, 1000.0, None, None, None),
        (0.0, 1000.0, 0.30, None, 0.0),
    ],
)
def test_money(
    joules: float | None, tps: float | None, kwh: float | None, hour: float | None, cost: float | None
) -> None:
    """Energy and time by their prices, together."""
    found = cost_per_million_tokens(joules, tps, kwh, hour)
    assert found == (None if cost is None else pytest.approx(cost))
