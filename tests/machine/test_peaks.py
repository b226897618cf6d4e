"""What memories and processors can do: how large a matrix must be, what is kept of it, and the real measurement."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from conftest import RunLlmrun
from fake_machine import FakeNvml
from waiting import HANGS_S

from llmrun.engine.jobs.roofline import Prober, key_of
from llmrun.errors import DiskError, EngineCrashed
from llmrun.machine import hardware, peaks
from llmrun.machine.hardware import last_level_cache_bytes
from llmrun.machine.nvml import NoGpus
from llmrun.machine.peaks import GIB, MIB, Ceiling, Key, Spread, datasheet_bytes_per_s, read_size

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
KEY = Key("Some CPU", 8, 16, None, 8, (("CPU", "Some CPU", 32),), "1.2 abc")
CPU = Ceiling(
    *("CPU", "cpu", "Some CPU", "CPU", 8, "2026-11-20T12:00:00Z", 256 * MIB),
    read_bytes_per_s=Spread(40e9, 38e9, 41e9, 9),
    flops_per_s={"F16": Spread(2e11, 1e11, 3e11, 5)},
)


# -- how large -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "free", "cache", "size"),
    [
        ("cpu", 64 * GIB, 32 * MIB, 256 * MIB),  # 4 x 32 is less than the least
        ("cpu", 64 * GIB, 96 * MIB, 384 * MIB),
        ("cpu", 64 * GIB, 0, 256 * MIB),  # a system that doesn't tell
        ("cpu", 64 * GIB, 600 * MIB, 2 * GIB),  # 4 x 600 is more than the most
        ("cpu", 64 * GIB, 1152 * MIB, 2304 * MIB),  # but twice the cache it must be
        ("cpu", 6 * GIB, 480 * MIB, 1536 * MIB),  # a quarter of what is free
        ("cpu", 3 * GIB, 480 * MIB, None),  # a quarter is not twice the cache
        ("cpu", 1023 * MIB, 8 * MIB, None),
        ("cpu", 1024 * MIB, 8 * MIB, 256 * MIB),
        ("cpu", None, 96 * MIB, 384 * MIB),
        ("gpu", 80 * GIB, 480 * MIB, GIB),  # the CPU's caches are not its own
        ("gpu", 2 * GIB, 0, 512 * MIB),
        ("gpu", 512 * MIB, 0, None),
        ("gpu", None, 0, GIB),
    ],
)
def test_read_size(kind: str, free: int | None, cache: int, size: int | None) -> None:
    """Four times the caches, 256 MiB to 2 GiB, a quarter of what is free; never so little that a cache would do."""
    assert read_size(kind, free, cache) == size


def cached(root: Path, cpu: int, *indices: tuple[int, str, str]) -> None:
    for i, (level, size, shared) in enumerate(indices):
        folder = root / f"cpu{cpu}" / "cache" / f"index{i}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(f"{text}\n")


def test_last_level_cache(tmp_path: Path) -> None:
    """Two sockets of two CPUs with 32 MiB each are 64 MiB; the levels below don't count."""
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        cached(tmp_path, cpu, (1, "48K", str(cpu)), (2, "2048K", str(cpu)), (3, "32768K", shared))
    assert last_level_cache_bytes(tmp_path) == 64 * MIB


def test_no_cache_to_be_seen(tmp_path: Path) -> None:
    """Nothing, half of it, or nonsense: 0."""
    assert last_level_cache_bytes(tmp_path) == 0
    cached(tmp_path, 0, (3, "lots", "0"))
    (tmp_path / "cpu1" / "cache" / "index0").mkdir(parents=True)
    assert last_level_cache_bytes(tmp_path) == 0


def test_what_stands_on_paper() -> None:
    """2 x 3201 MHz x 6144 bits / 8 are 4.917 TB/s. Unknown stays unknown: no such GPU, no driver, no answer."""
    nvml = FakeNvml()
    assert datasheet_bytes_per_s(nvml, "Card 1") == pytest.approx(4.916736e12)
    assert datasheet_bytes_per_s(nvml, "Card 7") is None
    assert datasheet_bytes_per_s(NoGpus("none"), "Card 1") is None
    assert datasheet_bytes_per_s(FakeNvml(broken=frozenset({"bus_width_bits"})), "Card 1") is None
    assert replace(CPU, datasheet_bytes_per_s=50e9).datasheet_share == 0.8
    assert CPU.datasheet_share is None


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert Spread.of([]) is None


# -- what is kept --------------------------------------------------------------------------------------------------


def test_kept_and_found_again(tmp_path: Path) -> None:
    """The same figures a day later, by the same key; by another key none."""
    peaks.save(KEY, [CPU], where=tmp_path)
    assert peaks.load(KEY, now=NOW, where=tmp_path) == (CPU,)
    assert peaks.load(KEY, now=NOW, where=tmp_path)[0].age_s(NOW) == 86_400
    for other in (replace(KEY, threads=4), replace(KEY, llama_cpp="1.3"), replace(KEY, devices=())):
        assert peaks.load(other, now=NOW, where=tmp_path) == ()
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # nothing of the writing is left


def test_files_of_version_0_1(tmp_path: Path) -> None:
    """What that version kept for this machine is read, and written again as it was."""
    kept = Path(__file__).parent / "data" / "ceilings-0.1.json"
    (tmp_path / f"{KEY.digest}.json").write_text(kept.read_text())
    found = peaks.load(KEY, now=NOW, where=tmp_path)
    assert found[0] == CPU and found[1].device == "CUDA0" and found[1].datasheet_bytes_per_s == 4.9e12
    peaks.save(KEY, found, where=tmp_path)
    assert (tmp_path / f"{KEY.digest}.json").read_text() == kept.read_text()


def test_too_old(tmp_path: Path) -> None:
    """After 30 days it is measured anew; for showing, any age will do. A clock that was wrong is no age."""
    peaks.save(KEY, [CPU], where=tmp_path)
    later = NOW + timedelta(days=30)
    assert peaks.load(KEY, now=later, where=tmp_path) == ()
    assert peaks.load(KEY, now=later, where=tmp_path, max_age_days=32) == (CPU,)
    assert peaks.load(KEY, now=later, where=tmp_path, max_age_days=None) == (CPU,)
    assert peaks.load(KEY, now=NOW - timedelta(days=7), where=tmp_path) == ()
    assert replace(CPU, measured="yesterday").age_s(NOW) is None


def test_the_newer_of_each_stays(tmp_path: Path) -> None:
    """What was measured again replaces itself; other threads, and other workers of the same name, stay."""
    one = replace(CPU, n_threads=1)
    here, there = (replace(CPU, device="RPC0", description=f"{host}:1", n_threads=None) for host in "ab")
    peaks.save(KEY, [CPU, one, here], where=tmp_path)
    again = replace(CPU, measured="2026-11-21T11:00:00Z")
    peaks.save(KEY, [again, there], where=tmp_path)
    assert peaks.load(KEY, now=NOW, where=tmp_path) == (again, one, here, there)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "[" * 100_000, '{"schema": "llmrun.ceilings/9"}', "half", "wrong", "binary"]
)
def test_a_damaged_file_is_none(tmp_path: Path, damage: str) -> None:
    """It is as if nothing had been measured; and the next measurement replaces it."""
    peaks.save(KEY, [CPU], where=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    if damage == "half":
        damage = whole[: len(whole) // 2]
    elif damage == "wrong":
        damage = whole.replace('"median": 40000000000.0', '"median": "fast"')
        assert damage != whole
    path.write_bytes(b"\xff\xfe\x00" if damage == "binary" else damage.encode())
    assert peaks.load(KEY, now=NOW, where=tmp_path) == ()
    peaks.save(KEY, [CPU], where=tmp_path)
    assert peaks.load(KEY, now=NOW, where=tmp_path) == (CPU,)


def test_nowhere_to_keep_it(tmp_path: Path) -> None:
    """A folder that can't be made: said, by name."""
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="writing"):
        peaks.save(KEY, [CPU], where=tmp_path / "file" / "ceilings")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    assert peaks.folder() == tmp_path / "cache" / "ceilings"
    monkeypatch.delenv("LLMRUN_HOME")
    assert peaks.folder().parts[-2:] == ("llmrun", "ceilings")


# -- the real thing ------------------------------------------------------------------------------------------------


def test_probe_of_the_cpu() -> None:
    """Both ceilings are numbers; each can be left out; what the device can't do is empty, and so is what can't be."""
    with Prober() as prober:
        probed = prober.probe("CPU", "Q4_K", 1, 0.01, n_bytes=16 * MIB, repack=True)
        everything = [*probed.read_bytes_per_s, *probed.flops_per_s]
        assert probed.read_bytes_per_s and probed.flops_per_s
        assert all(math.isfinite(value) and value > 0 for value in everything)
        assert not prober.probe("CPU", "", 1, 0.01, n_bytes=16 * MIB).flops_per_s
        assert not prober.probe("CPU", "F16", 1, 0.01, n_bytes=0).read_bytes_per_s
        unknown = prober.probe("CPU", "Q9_K", 1, 0.01, n_bytes=0)
        assert unknown.read_bytes_per_s == unknown.flops_per_s == []
        assert prober.probe("CPU", "", 1, 0.01, n_bytes=1 << 60).read_bytes_per_s == []  # no room
        assert prober.probe("CPU", "F16", 1, 0.01, n_bytes=0).flops_per_s  # and it still serves
        assert prober.read_size("CPU") and prober.read_size("CUDA99") is None
        with pytest.raises(EngineCrashed, match="no device CUDA99"):
            prober.probe("CUDA99", "F16", 1, 0.01, n_bytes=0)


def test_the_key_of_this_machine() -> None:
    with Prober() as prober:
        key = key_of(prober.found)
    assert key.cpu and key.llama_cpp and key.threads == hardware.default_threads()
    assert [name for name, _, _ in key.devices if name == "CPU"] == ["CPU"]
    assert key.digest == replace(key).digest != replace(key, cpu="Another").digest


_TWENTY = """
import os, sys
from llmrun.engine.child import ggml, roofline as ceiling

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

device = ggml.by_name("CPU")
def once():
    for product in (ceiling.Product.to_read(device, 32 << 20, 1), ceiling.Product.to_multiply(device, "Q4_K", 1)):
        product.repeat(2)
        product.close()
        product.close()
once()
before = resident()
for _ in range(20):
    once()
print(resident() - before)
"""


_TOUCHED = """
import os, sys
from llmrun.engine.child import ggml, roofline as ceiling

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
product = ceiling.Product.to_read(ggml.by_name("CPU"), 256 << 20, 1)
print(resident() - before, product.n_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_page_is_there() -> None:
    """A page that was never written is one page of zeros for all of them, and read from the cache. 256 MiB are square,
    which once had only a quarter of them written: 127 GB/s instead of 28."""
    done = subprocess.run([sys.executable, "-c", _TOUCHED], capture_output=True, text=True, timeout=HANGS_S, check=True)
    resident, n_bytes = map(int, done.stdout.split())
    assert n_bytes == 256 * MIB <= resident


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_give_their_memory_back() -> None:
    """Twenty of 32 MiB and of 17 MiB, one after the other, leave less than one of them behind."""
    # Without the threshold that glibc moves up, each of them is mapped, and unmapped when it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", _TWENTY], capture_output=True, text=True, timeout=HANGS_S, env=environment, check=True
    )
    assert int(done.stdout) < 8 * MIB


def test_a_worker_can_be_measured(rpc_worker: Callable[..., str]) -> None:
    """Its figures are those of products that were really computed: a worker answers nothing but a read of the result.

    One that offers too little memory gives empty lists.
    """
    with Prober([rpc_worker()]) as prober:
        here = prober.probe("CPU", "F16", 1, 0.05, n_bytes=64 * MIB)
        there = prober.probe("RPC0", "F16", 1, 0.05, n_bytes=64 * MIB)
        # The same core: waiting for nothing would be thousands of times as fast.
        assert 0 < max(there.read_bytes_per_s) < 100 * max(here.read_bytes_per_s)
        assert 0 < max(there.flops_per_s) < 100 * max(here.flops_per_s)
    with Prober([rpc_worker(memory=0.0625)]) as prober:
        assert prober.read_size("RPC0") is None
        probed = prober.probe("RPC0", "F16", 1, 0.05, n_bytes=GIB)
        assert probed.read_bytes_per_s == []


def test_command(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Measured, shown as data, kept, and shown again with its age by the same command without --measure."""
    environment = {"LLMRUN_HOME": str(tmp_path)}
    assert json.loads(llmrun("devices", "--json", env=environment).stdout)["ceilings"] == []
    done = llmrun("devices", "--measure", "--seconds", "0.05", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["ceilings"]
    of_cpu = [each for each in measured if each["device"] == "CPU"]
    assert [each["n_threads"] for each in of_cpu] == sorted({1, hardware.default_threads()})
    for each in of_cpu:
        read = each["read_bytes_per_s"]
        assert read is None or 0 < read["lowest"] <= read["median"] <= read["highest"]
        assert set(each["flops_per_s"]) == {"F16", "Q8_0", "Q4_K"}
        assert each["age_s"] >= 0 and each["datasheet_bytes_per_s"] is None
    kept = json.loads(llmrun("devices", "--json", env=environment).stdout)["ceilings"]
    assert [{**each, "age_s": 0} for each in kept] == [{**each, "age_s": 0} for each in measured]
    shown = llmrun("devices", env=environment).stdout
    assert "Q4_K GFLOP/S" in shown and "just now" in shown


@pytest.mark.parametrize("seconds", ["0", "nan", "-1", "61"])
def test_seconds_have_a_range(llmrun: RunLlmrun, seconds: str) -> None:
    done = llmrun("devices", "--measure", "--seconds", seconds)
    assert done.returncode == 2 and "0.05 to 60" in done.stderr


def test_seconds_of_what(llmrun: RunLlmrun) -> None:
    """They are not silently of nothing."""
    for options in ((), ("--profile",)):
        done = llmrun("devices", *options, "--seconds", "1")
        assert done.returncode == 2 and "--seconds" in done.stderr and "try: --measure" in done.stderr


def test_workers_as_they_are_typed(llmrun: RunLlmrun) -> None:
    """What is proposed in place of a wrong address can be typed."""
    done = llmrun("devices", "--rpc", "nonsense")
    assert done.returncode == 2 and "try: --rpc 192.168.1.7:50052" in done.stderr
