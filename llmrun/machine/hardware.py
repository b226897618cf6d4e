"""The machine: how many cores and how much memory this process may really use.

Standard library only: every command asks here, and must start fast.
"""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmrun.machine.proc import ROOT, Proc, line_of

if TYPE_CHECKING:
    from llmrun.machine.device import Device

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


def cpu_quota(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float | None:
    """CPUs' worth of time that the cgroup grants (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), or None for no limit.

    The tightest limit on the way from this process's cgroup up to the root counts.
    """
    limits = []
    for folder in _cgroup_folders(cgroup, membership, "cpu"):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            try:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            except OSError:
                continue
        if quota not in ("max", "-1") and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes of memory that the cgroup or the address-space limit (`ulimit -v`) leaves, or None for no limit."""
    limits = [container_limit(cgroup, membership)]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min((limit for limit in limits if limit is not None), default=None)


def container_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes of memory that the cgroup may use in all, or None for no limit."""
    limits = []
    for folder in _cgroup_folders(cgroup, membership, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text != "max" and int(text) < 1 << 60:  # v1 writes "no limit" as a huge number
                limits.append(int(text))
    return min(limits, default=None)


def _cgroup_folders(cgroup: Path, membership: Path, controller: str) -> list[Path]:
    """This process's cgroup and those above it: v2 first, then v1's `controller`."""
    folders = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = cgroup
        elif controller in controllers.split(","):
            root = cgroup / controller
        else:
            continue
        here = root / path.lstrip("/")
        folders += [here, *[parent for parent in here.parents if parent.is_relative_to(root)]]
    return [*folders, cgroup, cgroup / controller]


def default_threads() -> int:
    """Threads for decoding: one per physical core, within the affinity and the cgroup's CPU quota."""
    cores = physical_cores(usable_cpus())
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cgroup_free(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that the cgroup still grants, or None for no limit. Page cache that can be dropped does not count as used.

    As with `memory_limit`, the tightest on the way up counts.
    """
    free = []
    names = (
        ("memory.max", "memory.current", "inactive_file "),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    )
    for folder in _cgroup_folders(cgroup, membership, "memory"):
        for limit_name, used_name, cache_name in names:
            try:
                limit = (folder / limit_name).read_text().strip()
                used = int((folder / used_name).read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):
                continue
            if limit == "max" or int(limit) >= 1 << 60:
                continue
            cache = next((int(line.split()[1]) for line in stat if line.startswith(cache_name)), 0)
            free.append(max(0, int(limit) - max(0, used - cache)))
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
        try:
            text = (index / "size").read_text().strip()
            level = int((index / "level").read_text())
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if text[:-1].isdigit() and text[-1:] in "KMG":
            found.setdefault(level, {})[shared] = int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]
    return sum(found[max(found)].values()) if found else 0


def cpu_mhz(cpus: Path = _CPUS) -> float | None:
    """How fast the CPUs that this process may use run just now, their mean; None where the system doesn't tell.

    A virtual machine mostly doesn't, and what the kernel tells is what it asked for, not what a hot CPU gives.
    """
    found = []
    for cpu in usable_cpus():
        try:
            found.append(int((cpus / f"cpu{cpu}" / "cpufreq" / "scaling_cur_freq").read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return sum(found) / len(found) if found else None


PowerSource = Literal["battery", "mains"]


def power_source(supplies: Path = _SUPPLIES) -> PowerSource | None:
    """What feeds a machine that has a battery; None: it has none, or the system does not tell."""
    try:
        found = [
            (line_of(folder / "type"), line_of(folder / "online"), line_of(folder / "scope"))
            for folder in supplies.iterdir()
        ]
    except OSError:
        return None
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
    try:
        cpu_info = (proc / "cpuinfo").read_text()
    except OSError:
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpu_info, re.MULTILINE)
    can = set(found[1].split()) if found else set()
    return [ours for ours, theirs in _INSTRUCTIONS.items() if features and theirs in can and ours not in features]
