"""The machine: how many cores and how much memory this process may really use.

Standard library only: every command asks here, and must start fast.
"""

from __future__ import annotations

import math
import os
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmrun.machine.proc import ROOT, Proc, line_of, text_of

if TYPE_CHECKING:
    from llmrun.machine.device import Device

_IS_MACOS: bool = sys.platform == "darwin"
_DEVICES = Path("/sys/devices")
_CPUS = Path("/sys/devices/system/cpu")
_SUPPLIES = Path("/sys/class/power_supply")
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = ROOT / "self/cgroup"


def usable_cpus() -> set[int]:
    """The logical CPUs that this process may run on (affinity); all of them where the system can't say."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], topology: Path = _CPUS) -> int:
    """How many physical cores the logical `cpus` lie on: siblings of one core share its execution units."""
    cores = set()
    for cpu in cpus:
        folder = topology / f"cpu{cpu}" / "topology"
        try:
            cores.add(((folder / "physical_package_id").read_text().strip(), (folder / "core_id").read_text().strip()))
        except OSError:
            import psutil  # macOS; costs 20 ms, so only where needed

            return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))
    return max(1, len(cores))


def fast_cpus(cpus: set[int], root: Path = _DEVICES) -> set[int]:
    """Of the logical `cpus` those that are no efficiency cores; all of them where the system makes no difference.

    As llama.cpp has it: threads that wait for each other at every step run as fast as the slowest. Linux tells of
    Intel's hybrid CPUs in `cpu_core/cpus` beside `cpu_atom`, of Arm's in `cpu_capacity`, where less than two thirds of
    the most is a small core. macOS tells their number alone (`fast_cores_of_macos`).
    """
    fast = cpu_list(line_of(root / "cpu_core/cpus"))
    if not fast:
        capacity = {cpu: line_of(root / f"system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}
        known = {cpu: int(text) for cpu, text in capacity.items() if text.isdecimal()}
        fast = {cpu for cpu, value in known.items() if 3 * value >= 2 * max(known.values())}
    return cpus & fast or cpus


def cpu_list(text: str) -> set[int]:
    """The kernel's "0-7,16" as numbers; empty where it is not one."""
    ends = (part.partition("-")[::2] for part in text.split(","))
    found = [(first, last or first) for first, last in ends if first.isdecimal() and (last or first).isdecimal()]
    return {cpu for first, last in found for cpu in range(int(first), int(last) + 1)}


def fast_cores_of_macos() -> int | None:
    """Physical cores of the fastest kind, as `hw.perflevel0` counts them; None elsewhere, and before Apple's own."""
    if not _IS_MACOS:
        return None
    import ctypes

    number, size = ctypes.c_int32(), ctypes.c_size_t(4)
    name = b"hw.perflevel0.physicalcpu"
    failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(number), ctypes.byref(size), None, 0)
    return None if failed else number.value or None


def cpu_quota(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float | None:
    """CPUs' worth of time that the cgroup grants (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), or None for no limit.

    The tightest limit on the way from this process's cgroup up to the root counts.
    """
    limits = []
    for folder in _cgroup_folders(cgroup, membership, "cpu"):
        quota, _, period = line_of(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = line_of(folder / "cpu.cfs_quota_us"), line_of(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # "max" and -1 are no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes of memory that the cgroup or the address-space limit (`ulimit -v`) leaves, or None for no limit."""
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [container_limit(cgroup, membership), None if address_space == resource.RLIM_INFINITY else address_space]
    return min((limit for limit in limits if limit is not None), default=None)


def container_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes of memory that the cgroup may use in all, or None for no limit."""
    return min((limit for limit, *_ in _memory_limits(cgroup, membership)), default=None)


# Of v2 and v1: the limit, what is used, and in `memory.stat` the page cache that can be dropped.
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _memory_limits(cgroup: Path, membership: Path) -> Iterator[tuple[int, Path, str, str]]:
    """Every limit on the way up, its folder and the names of what is used of it."""
    for folder in _cgroup_folders(cgroup, membership, "memory"):
        for limit_name, used_name, cache_name in _MEMORY_FILES:
            text = line_of(folder / limit_name)
            if text.isdecimal() and int(text) < 1 << 60:  # v1 writes "no limit" as a huge number, v2 "max"
                yield int(text), folder, used_name, cache_name


def _cgroup_folders(cgroup: Path, membership: Path, controller: str) -> list[Path]:
    """This process's cgroup and those above it: v2 first, then v1's `controller`."""
    folders = []
    for line in text_of(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroup / controller if controllers else cgroup
        here = root / path.lstrip("/")
        folders += [here, *[parent for parent in here.parents if parent.is_relative_to(root)]]
    return [*folders, cgroup, cgroup / controller]


def default_threads() -> int:
    """Threads that compute in lockstep: one per physical core that is not an efficiency core, within the affinity and
    the cgroup's CPU quota."""
    cores = physical_cores(fast_cpus(usable_cpus()))
    if (fast := fast_cores_of_macos()) is not None:
        cores = min(cores, fast)
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cgroup_free(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that the cgroup still grants, or None for no limit. Page cache that can be dropped does not count as used.

    As with `memory_limit`, the tightest on the way up counts.
    """
    free = []
    for limit, folder, used_name, cache_name in _memory_limits(cgroup, membership):
        used, stat = line_of(folder / used_name), text_of(folder / "memory.stat")
        if used.isdecimal() and stat:
            cache = re.search(rf"^{cache_name} (\d+)$", stat, re.MULTILINE)
            free.append(max(0, limit - max(0, int(used) - int(cache[1] if cache else 0))))
    return min(free, default=None)


def physical_memory() -> int | None:
    """Bytes of RAM that the machine has, whoever may use them; None: unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def available_memory() -> int | None:
    """Bytes of RAM that can be taken without swapping (Linux `MemAvailable`), within what the cgroup and
    `memory_limit` leave; None: unknown."""
    bounds = [bound for bound in (memory_limit(), cgroup_free()) if bound is not None]
    available = Proc().meminfo().get("MemAvailable")
    if available is None:
        import psutil

        available = int(psutil.virtual_memory().available)
    return min([available, *bounds])


def anonymous_memory() -> int | None:
    """Bytes of RAM that this process has written to and no file backs (Linux `RssAnon`); None: unknown."""
    return Proc().memory().anonymous_bytes


def last_level_cache_bytes(cpus: Path = _CPUS) -> int:
    """Bytes of all last-level caches together (Linux `cache/index*`), each counted once however many CPUs share it.

    0 where the system doesn't tell. A virtual machine may be told of all of its host's.
    """
    found: dict[int, dict[str, int]] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        text, level, shared = (line_of(index / name) for name in ("size", "level", "shared_cpu_list"))
        if level.isdecimal() and shared and text[:-1].isdigit() and text[-1:] in "KMG":
            found.setdefault(int(level), {})[shared] = int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]
    return sum(found[max(found)].values()) if found else 0


def cpu_mhz(cpus: Path = _CPUS) -> float | None:
    """How fast the CPUs that this process may use run just now, their mean; None where the system doesn't tell.

    A virtual machine mostly doesn't, and what the kernel tells is what it asked for, not what a hot CPU gives.
    """
    khz = [line_of(cpus / f"cpu{cpu}" / "cpufreq" / "scaling_cur_freq") for cpu in usable_cpus()]
    known = [int(each) for each in khz if each.isdecimal()]
    return sum(known) / len(known) / 1000 if known else None


PowerSource = Literal["battery", "mains"]


def power_source(supplies: Path = _SUPPLIES) -> PowerSource | None:
    """What feeds a machine that has a battery; None: it has none, or the system does not tell."""
    names = ("type", "online", "scope")
    found = [tuple(line_of(folder / name) for name in names) for folder in supplies.glob("*")]
    if not any(kind == "Battery" and scope != "Device" for kind, _, scope in found):  # a mouse's battery is no matter
        return None
    return "mains" if any(online == "1" for kind, online, _ in found if kind != "Battery") else "battery"


def on_battery(supplies: Path = _SUPPLIES) -> bool | None:
    """None where the system does not tell; machines without a battery are on mains."""
    return power_source(supplies) == "battery" if supplies.is_dir() else None


# Instructions that ggml's CPU code has kernels for: ggml's name of the feature, the kernel's in /proc/cpuinfo.
_INSTRUCTIONS = {
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
}
CRUCIAL_INSTRUCTIONS = frozenset({"AVX2", "FMA", "F16C", "DOTPROD"})
"""Without these, a build is 2 to 5 times slower than the CPU."""


def slow_instructions(devices: Iterable[Device], proc: Path = ROOT) -> list[str]:
    """Of `unused_instructions`, those that cost most."""
    return [each for each in unused_instructions(devices, proc) if each in CRUCIAL_INSTRUCTIONS]


def unused_instructions(devices: Iterable[Device], proc: Path = ROOT) -> list[str]:
    """What this CPU can do and ggml's CPU code was not built for, by ggml's names ("AVX2").

    Empty where the CPU device's features, or those of the CPU itself (macOS), are not known.
    """
    features: Mapping[str, str] = next((device.features for device in devices if device.name == "CPU"), {})
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text_of(proc / "cpuinfo"), re.MULTILINE)
    can = set(found[1].split()) if found else set()
    return [ours for ours, theirs in _INSTRUCTIONS.items() if features and theirs in can and ours not in features]
