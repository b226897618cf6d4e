"""Machines that are not here, from what people call them."""

from __future__ import annotations

import pytest

from llmrun.errors import UsageError
from llmrun.planning.predict import machines, speed
from llmrun.planning.predict.machines import Machine, parse

GIB = 1 << 30


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("3090 ti", "RTX 3090 Ti"),
        ("3090", "RTX 3090"),
        ("4070 Ti Super", "RTX 4070 Ti SUPER"),
        ("RTX 4060 Mobile", "RTX 4060 Laptop"),
        ("RTX 3060 12GB (PCIe x1, Pi CM5 host)", "RTX 3060"),
        ("A100 80 GB", "A100 80GB"),
        ("A100 80GB SXM", "A100 80GB SXM"),
        ("AMD Radeon RX 6700 XT", "RX 6700 XT"),
        ("7900 xtx", "RX 7900 XTX"),
        ("Strix Halo", "Ryzen AI Max+ 395 (Strix Halo)"),
        ("AMD Ryzen AI Max+ 395 (Strix Halo)", "Ryzen AI Max+ 395 (Strix Halo)"),
        ("AMD Ryzen AI Max+ 395 CPU (16 cores)", "AMD Ryzen AI Max+ 395 CPU"),
        ("dgx spark", "DGX Spark (GB10)"),
        ("M3 Max", "Apple M3 Max"),
        ("Apple M3 Max 40c", "Apple M3 Max"),
        ("m3 max 30-core gpu", "Apple M3 Max 30c"),
        ("Apple M2 Max CPU", "Apple M2 Max CPU"),
        ("7950X3D", "AMD Ryzen 9 7950X3D / DDR5-5200 x2"),
        ("i9-14900", "Intel i9-14900 / DDR5-5600 x2"),
        ("Xeon E5-2683 v4 (32 cores)", "Xeon E5-2683 v4 / DDR4-2400 x4"),
        ("RTX\t 4090", "RTX 4090"),
        ("RX 580", "RX 580"),
        ("Ryzen AI 9 HX 370", "Ryzen AI 9 HX 370 (Strix Point)"),
        ("Mac mini M4", "Apple M4"),
        ("MacBook M3", "Apple M3"),
        ("MacBook Pro M3 Max 40c", "Apple M3 Max"),
        ("MacBook Pro M3 Pro", "Apple M3 Pro"),
        ("Ryzen AI Max+ 395", "Ryzen AI Max+ 395 (Strix Halo)"),
    ],
)
def test_names_as_people_write_them(said: str, name: str) -> None:
    assert [part.name for part in parse(said).parts] == [name]


def test_every_device_is_found_by_its_own_name() -> None:
    """None hides another, and each is of a family that has constants."""
    for entry in machines.entries():
        found = parse(entry.part.name.partition(" / ")[0] if entry.part.kind == "cpu" else entry.part.name).parts[0]
        assert found.bytes_per_s == entry.part.bytes_per_s, (entry.part.name, found.name)
        assert speed.group(found) in speed.constants().decode


def test_memory_and_cores_of_a_name() -> None:
    """Fewer cores compute less; of some chips they also read less."""
    (part,) = parse("m1 7c 8gb").parts
    assert part.memory_bytes == 8 * GIB and part.flops == pytest.approx(2.6e12 * 7 / 8)
    assert parse("M3 Max 30c").parts[0].bytes_per_s == 307.2e9
    assert parse("M3 Max 30c 36gb").parts[0].memory_bytes == 36 * GIB
    assert parse("RTX 3080 12gb").parts[0].memory_bytes == 12 * GIB
    assert parse("EPYC 7352 1TB").parts[0].memory_bytes == 1024 * GIB


def test_several_devices() -> None:
    """A count is a row of the same; CPU and GPU stand with a plus between them."""
    for said in ("2x RTX 3090", "RTX 3090 x2", "3090 x 2", "2x3090", "RTX 3090 + RTX 3090"):
        pair = parse(said)
        assert [part.name for part in pair.parts] == ["RTX 3090"] * 2 and pair.cpu is None
    both = parse("RTX 4090 + DDR5-5600 x2 64gb + disk=7")
    assert both.gpus[0].name == "RTX 4090" and both.disk_bytes_per_s == 7e9
    assert both.cpu is not None and both.cpu.memory_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("said", "gb_s"),
    [("DDR5-5600 x2", 89.6), ("ddr4-3200 x1", 25.6), ("MRDIMM-8800 x12", 844.8), ("DDR4-2400 4ch", 76.8)],
)
def test_a_cpu_by_its_memory(said: str, gb_s: float) -> None:
    """Eight bytes a transfer and channel; how much of it there is, nobody said."""
    (part,) = parse(said).parts
    assert part.kind == "cpu" and part.memory_bytes is None
    assert part.bytes_per_s == pytest.approx(gb_s * 1e9)


def test_the_memory_of_a_cpu_that_is_known() -> None:
    """What stands beside the name counts; a CPU that is not known is its memory."""
    assert parse("Ryzen 9 7950X / DDR5-6000 x2").parts[0].bytes_per_s == pytest.approx(96e9)
    assert parse("Xyzzy 9000 / DDR5-6000 x2").parts[0].bytes_per_s == pytest.approx(96e9)


def test_the_long_form() -> None:
    machine = parse("kind=cpu,bandwidth=89.6,memory=32,disk=3.5")
    (part,) = machine.parts
    assert (part.kind, part.bytes_per_s, part.memory_bytes, part.flops) == ("cpu", 89.6e9, 32 * GIB, None)
    assert machine.disk_bytes_per_s == 3.5e9
    gpu = parse("kind=gpu,vendor=amd,bandwidth=960,memory=24,tflops=61.4").parts[0]
    assert speed.vendor(gpu) == "amd" and gpu.flops == 61.4e12
    assert speed.vendor(parse("kind=apple,bandwidth=400").parts[0]) == "apple"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("RTX 4099", "the nearest are RTX 4090"),
        ("RTX 4099 / DDR5-5600 x2", "not a device that is known"),
        ("DDR5-5600", "how many channels"),
        ("RTX 6000", "may be"),
        ("", "no device"),
        ("disk=3", "no device"),
        ("kind=tpu,bandwidth=1", "not 'tpu'.* are needed"),
        ("kind=cpu", "are needed"),
        ("kind=cpu,bandwidth=fast", "not a number"),
        ("kind=cpu,bandwidth=0", "not a number"),
        ("kind=gpu,bandwidth=9,vendor=acme", "vendor is one of"),
        ("kind=cpu,bandwidth=1,cores=4", "'cores=4' is not understood"),
        ("DDR5-5600 x2 + DDR4-3200 x2", "two CPUs"),
        ("RTX 4090 +", "nothing beside"),
        ("+ RTX 4090", "nothing beside"),
        ("RTX 4090 + + DDR5-5600 x2", "nothing beside"),
        ("99x RTX 3090", "99 devices"),
        ("0x RTX 3090", "0 devices"),
        ("RTX 3090 x17", "17 devices"),
        ("DDR5-5600 x2 32", "32 of what"),
        ("DDR5-5600 x2 128", "128 of what"),
        ("5", "5 of what"),
        ("DDR5-5600 x2 0gb", "no memory"),
        ("DDR5-5600 x99", "99 channels"),
        ("DDR5 x2", "how fast is DDR5"),
        ("LPDDR5X", "how fast is LPDDR5X"),
        ("RTX 4090+DDR5-5600 x2", r"' \+ ' stands between"),
        ("RTX 4090, DDR5-5600 x2", r"' \+ ' stands between"),
        ("M3 Max 41c", "at most 40 cores"),
        ("M3 Max 0c", "at most 40 cores"),
        ("RTX 4090 PCIe x16", "not a device that is known"),
        ("i5", "may be Intel i5-7600K"),
        ("i7", "may be"),
        ("Xeon", "may be"),
        ("3090 DDR5-5600 x2", "the nearest are RTX 3090"),
        ("ryzen 9", "may be .*AMD Ryzen 9 5950X"),
        ("EPYC", "may be AMD EPYC"),
    ],
)
def test_what_is_refused(said: str, problem: str) -> None:
    """With the nearest names and the long form."""
    with pytest.raises(UsageError, match=problem) as caught:
        parse(said)
    assert caught.value.field == "what_if" and "kind=gpu" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("2x RTX 3090", "2x RTX 3090"),
        ("RTX 4090 + DDR5-5600 x2 64gb", "RTX 4090 + DDR5-5600 x2 64gb"),
        ("a100", "a100 (A100 40GB)"),
        ("i9-14900 32gb", "i9-14900 32gb (Intel i9-14900 / DDR5-5600 x2)"),
        ("3090 x2", "3090 x2 (2x RTX 3090)"),
    ],
)
def test_what_it_is_taken_for_is_said(said: str, title: str) -> None:
    assert parse(said).title == title


def test_nothing_is_a_machine_without_devices() -> None:
    assert Machine("", ()).cpu is None
