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


def test_no_efficiency_cores_of_intel(tmp_path: Path) -> None:
    """Six P-cores with two threads each, eight E-cores: what is left of the affinity without the latter."""
    (tmp_path / "cpu_core").mkdir()
    (tmp_path / "cpu_core" / "cpus").write_text("0-11\n")
    (tmp_path / "cpu_atom").mkdir()
    (tmp_path / "cpu_atom" / "cpus").write_text("12-19\n")
    assert hardware.fast_cpus(set(range(20)), tmp_path) == set(range(12))
    assert hardware.fast_cpus({3, 4, 15}, tmp_path) == {3, 4}
    assert hardware.fast_cpus({15, 16}, tmp_path) == {15, 16}  # pinned to them: then these


def test_no_small_cores_of_arm(tmp_path: Path) -> None:
    """One prime, three big and four small cores; the prime one is no reason to leave the big ones out."""
    for cpu, capacity in enumerate([325] * 4 + [870] * 3 + [1024]):
        folder = tmp_path / "system" / "cpu" / f"cpu{cpu}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
    assert hardware.fast_cpus(set(range(8)), tmp_path) == {4, 5, 6, 7}


def test_cores_that_are_all_alike(tmp_path: Path) -> None:
    assert hardware.fast_cpus({0, 1}, tmp_path) == {0, 1}
    assert hardware.cpu_list("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11} and hardware.cpu_list("") == set()
