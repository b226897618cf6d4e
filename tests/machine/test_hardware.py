"""How many threads are right, from system files made for the test."""

from __future__ import annotations

from pathlib import Path

from llmrun.machine import hardware


def topology(folder: Path, cores: dict[int, tuple[int, int]]) -> Path:
    for cpu, (package, core) in cores.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "physical_package_id").write_text(f"{package}\n")
        (place / "core_id").write_text(f"{core}\n")
    return folder


def test_siblings_are_one_core(tmp_path: Path) -> None:
    """Two sockets of two cores with two threads each are four cores; the affinity may leave fewer."""
    machine = topology(tmp_path, {cpu: (cpu % 2, cpu // 4) for cpu in range(8)})
    assert hardware.physical_cores(set(range(8)), machine) == 4
    assert hardware.physical_cores({0, 4}, machine) == 2
    assert hardware.physical_cores({0, 2}, machine) == 1


def test_quota_v2(tmp_path: Path) -> None:
    """The tightest limit on the way up counts; `max` is none."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "self").write_text("0::/a/b\n")
    assert hardware.cpu_quota(tmp_path, tmp_path / "self") == 1.5


def test_quota_v1_and_none(tmp_path: Path) -> None:
    (tmp_path / "cpu" / "box").mkdir(parents=True)
    (tmp_path / "cpu" / "box" / "cpu.cfs_quota_us").write_text("400000")
    (tmp_path / "cpu" / "box" / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "self").write_text("4:memory:/x\n3:cpu,cpuacct:/box\n")
    assert hardware.cpu_quota(tmp_path, tmp_path / "self") == 4
    assert hardware.cpu_quota(tmp_path / "nowhere", tmp_path / "missing") is None


def test_memory_limit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("1073741824\n")
    (tmp_path / "self").write_text("0::/a\n")
    assert hardware.memory_limit(tmp_path, tmp_path / "self") == 1 << 30


def test_what_the_cgroup_still_grants(tmp_path: Path) -> None:
    """Of 1000 bytes 700 are used, 200 of them by cache that can go: 500 are left. No limit is no number."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("1000\n")
    (tmp_path / "a" / "memory.current").write_text("700\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    (tmp_path / "self").write_text("0::/a\n")
    assert hardware.cgroup_free(tmp_path, tmp_path / "self") == 500
    (tmp_path / "a" / "memory.max").write_text("max\n")
    assert hardware.cgroup_free(tmp_path, tmp_path / "self") is None


def test_this_machine() -> None:
    """What is said of this very machine is at least possible."""
    assert 1 <= hardware.default_threads() <= len(hardware.usable_cpus())
    free = hardware.available_memory()
    assert free and free > 1 << 20
