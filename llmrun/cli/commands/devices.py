"""`llmrun devices`: what llama.cpp can compute on, here and at workers, and what this machine has that it can't use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from llmrun import __version__, codec
from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.terminal import screen, tables
from llmrun.errors import DiskError, EngineCrashed, UsageError
from llmrun.options.endpoints import listed, parse_endpoints
from llmrun.options.spec import Number, Written
from llmrun.units import UNKNOWN, ago, bandwidth, duration, fixed, percent, significant, size

if TYPE_CHECKING:
    from llmrun.engine.devices import Found
    from llmrun.engine.jobs.roofline import Prober
    from llmrun.machine.peaks import Ceiling
    from llmrun.machine.profile import Profile

_SECONDS = 0.5


def devices(
    rpc: Annotated[
        tuple[str, ...],
        Option(
            "--rpc",
            kind=Written(parse_endpoints, listed),
            metavar="HOST:PORT,…",
            help="Also the devices of these workers (llmrun worker).",
        ),
    ] = (),
    measure: Annotated[
        bool, Option("--measure", help="Measure how fast each device reads its memory and multiplies, and keep that.")
    ] = False,
    profile: Annotated[
        bool,
        Option(
            "--profile",
            help="Measure what the operations of a model take here (half a minute), and keep that for predictions.",
        ),
    ] = False,
    seconds: Annotated[
        float | None,
        Option(
            "--seconds",
            kind=Number(0.05, 60),
            metavar="S",
            help="With --measure: of each figure.",
            without=f"{_SECONDS}",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show what llama.cpp can compute on, with memory, features and versions.

    Of the CPU's memory, what is free is what this process could really have: within the limits of its container.
    Speeds are shown once they were measured: --measure. What was measured by --profile is kept until it is measured
    again, and shown by the same command.
    """
    if seconds is not None and not measure:
        raise UsageError("so long takes each figure of --measure alone", field="seconds", hint="--measure")
    endpoints = tuple(rpc)
    from llmrun.engine.jobs.roofline import Prober, key_of
    from llmrun.machine import peaks

    with Prober(endpoints) as prober:
        found = prober.found
        key = key_of(found)
        if measure:
            measured = _measured(prober, seconds or _SECONDS)
            try:
                peaks.save(key, measured)
            except DiskError as error:
                screen.note(f"what was measured can't be kept: {error.message}")
        else:
            present = {(device.name, device.description) for device in found.devices}
            kept = peaks.load(key, max_age_days=None)
            measured = [each for each in kept if (each.device, each.description) in present]
    from llmrun.machine import profile as profiles

    known = (_measured_profile(endpoints) if profile else None) or profiles.load(key)
    facts = facts_of(found, measured)
    facts["profile"] = known and {**codec.plain(known), "age_s": known.age_s()}
    if as_json:
        screen.out_json(facts)
        return
    tables.show(("DEVICE", "KIND", "BACKEND", ">MEMORY", ">FREE", "WHAT IT IS…"), map(_device_row, facts["devices"]))
    screen.out("\n")
    if measured:
        _show_ceilings(measured)
        screen.out("\n")
    if profile and known:
        _show_profile(known)
        screen.out("\n")
    features = {item["backend"]: item["features"] for item in facts["devices"] if item["features"]}
    pairs = [(f"{backend} features", _features(said)) for backend, said in features.items()]
    threads = facts["threads"]
    cores = f"{threads['physical_cores']} physical cores, {threads['logical_cpus']} logical"
    pairs.append(("threads", f"{threads['default']} ({cores}; quota {significant(threads['quota'])})"))
    if not features:  # else it would say the same again
        pairs.append(("built with", facts["system_info"]))
    if known:
        pairs.append(("profile", f"measured {ago(known.age_s())}"))
    pairs += [(name.replace("_", " "), version) for name, version in facts["versions"].items() if version]
    tables.show_pairs(pairs)
    if facts["without_devices"]:
        screen.note(facts["without_devices"])
    for gpu in facts["unused_gpus"]:
        screen.note(gpu["message"])
        if gpu["command"]:
            screen.note(f"  try: {gpu['command']}")


def _measured(prober: Prober, seconds: float) -> list[Ceiling]:
    """The ceilings of every device: of the CPU with one thread and with as many as we take by default."""
    from llmrun.machine import hardware, nvml, peaks

    gpus = nvml.open_nvml()
    made: list[Ceiling] = []
    for device in prober.found.devices:
        if device.kind in ("accel", "meta"):  # they compute in another one's memory
            continue
        threads = sorted({1, hardware.default_threads()}) if device.kind == "cpu" else [None]
        for n_threads in threads:
            screen.note(f"measuring {device.name}{f', threads: {n_threads}' if n_threads else ''} …")
            paper = peaks.datasheet_bytes_per_s(gpus, device.description)
            try:
                made.append(prober.ceiling(device, n_threads, seconds, datasheet_bytes_per_s=paper))
            except EngineCrashed as error:
                screen.note(error.message)
                return made  # the prober is of no use any more
    return made


def _measured_profile(endpoints: Sequence[str]) -> Profile | None:
    """In a child whose threads wait as those of a large model do."""
    from llmrun.engine.jobs.roofline import Prober
    from llmrun.tuning import sources

    with Prober(endpoints, spins=False) as prober:
        try:
            return sources.measure_profile(
                prober, on_part=lambda part: screen.note(f"measuring {part} …"), on_note=screen.note
            )
        except EngineCrashed as error:
            screen.note(error.message)
            return None


def _show_profile(profile: Profile) -> None:
    """What it says, as rates: of one column bytes of weights, of more of them operations."""
    columns = sorted({each.n_columns for each in profile.products})
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for product in profile.products:
        kind = f"{product.kind}, {product.n_used} of {product.n_experts} experts" if product.n_experts else product.kind
        what = (product.device, kind, "repacked" if product.repack else "plain", _threads(product.n_threads))
        said = bandwidth(product.bytes_per_s) if product.n_columns == 1 else significant(product.flops_per_s / 1e9)
        rows.setdefault(what, {})[product.n_columns] = said
    titles = [">1 COLUMN" if n == 1 else f">{n}, GFLOP/S" for n in columns]
    tables.show(
        ("DEVICE", "PRODUCT…", "LAYOUT", ">THREADS", *titles),
        ((*what, *(said.get(n, UNKNOWN) for n in columns)) for what, said in rows.items()),
    )
    screen.out("\n")
    attended: dict[tuple[str, ...], dict[bool, str]] = {}
    for each in profile.attention:
        way = each.kind if each.flash else f"{each.kind}, without flash"
        head = (each.device, way, str(each.head_size), str(each.n_depth), _threads(each.n_threads))
        one = each.n_tokens == 1
        said = bandwidth(each.n_bytes / each.seconds) if one else significant(each.flops_per_s / 1e9)
        attended.setdefault(head, {})[one] = said
    tables.show(
        ("DEVICE", "ATTENTION…", ">HEAD", ">DEPTH", ">THREADS", ">1 TOKEN", ">MANY, GFLOP/S"),
        ((*head, said.get(True, UNKNOWN), said.get(False, UNKNOWN)) for head, said in attended.items()),
    )
    screen.out("\n")
    pairs = [
        (
            f"beside products, threads {each.n_threads}, tokens {each.n_tokens}, width {each.n_embd}",
            f"{duration(each.layer_s)} a layer, {duration(each.token_s)} outside",
        )
        for each in profile.overheads
    ]
    for sent in profile.transfers:
        to, back = bandwidth(sent.n_bytes / sent.write_s), bandwidth(sent.n_bytes / sent.read_s)
        pairs.append((f"transfers, {sent.device}", f"{duration(sent.latency_s)}; written {to}, read {back}"))
    for read in profile.reads:
        label = f"reads, {read.device}, threads {_threads(read.n_threads)}"
        pairs.append((label, ", ".join(map(bandwidth, read.bytes_per_s))))
    if profile.later:
        least, most = (fixed(each, 2) for each in (min(profile.later), max(profile.later)))
        pairs.append(("seconds later", f"products took {least} to {most} times as long"))
    pairs.append(("disk", bandwidth(profile.disk_bytes_per_s)))
    pairs.append(("took", ", ".join(f"{part} {duration(taken)}" for part, taken in profile.took_s.items())))
    tables.show_pairs(pairs)


def _threads(n: int | None) -> str:
    return UNKNOWN if n is None else str(n)


def _show_ceilings(measured: Sequence[Ceiling]) -> None:
    kinds = list(dict.fromkeys(kind for each in measured for kind in each.flops_per_s))
    titles = ("DEVICE", ">THREADS", ">READS", ">LOWEST", ">HIGHEST", ">ON PAPER", ">SHARE")
    rows = []
    for each in measured:
        read, paper = each.read_bytes_per_s, each.datasheet_bytes_per_s
        flops = [each.flops_per_s.get(kind) for kind in kinds]
        rows.append(
            (
                f"{each.device} at {each.description}" if each.backend.startswith("RPC") else each.device,
                UNKNOWN if each.n_threads is None else str(each.n_threads),
                *(bandwidth(value) for value in ((read.median, read.lowest, read.highest) if read else (None,) * 3)),
                bandwidth(paper),
                percent(each.datasheet_share),
                *(significant(found.median / 1e9) if found else UNKNOWN for found in flops),
                ago(each.age_s()),
            )
        )
    tables.show((*titles, *(f">{kind} GFLOP/S" for kind in kinds), ">MEASURED"), rows)


def facts_of(found: Found, measured: Sequence[Ceiling] = ()) -> dict[str, Any]:
    """The document that `--json` prints: sizes in bytes, None where unknown."""
    import platform

    from llmrun.engine.devices import built
    from llmrun.machine import backends, doctor, gpus, hardware, packages

    cpus = hardware.usable_cpus()
    used = {device.backend for device in found.devices}
    clone = gpus.clone_folder()
    unused = [gpu for gpu in gpus.find_gpus() if not gpu.used_by(used)]
    return {
        "devices": codec.plain(found.devices),
        "threads": {
            "default": hardware.default_threads(),
            "physical_cores": hardware.physical_cores(cpus),
            "logical_cpus": len(cpus),
            "quota": hardware.cpu_quota(),
        },
        "ceilings": [
            {**asdict(each), "datasheet_share": each.datasheet_share, "age_s": each.age_s()} for each in measured
        ],
        "system_info": " | ".join(part.strip() for part in found.system_info.split("|") if part.strip()),
        "versions": {
            "llmrun": __version__,
            "llama-cpp-python": packages.installed("llama-cpp-python"),
            **found.versions,
            "python": platform.python_version(),
            "nvidia_driver": gpus.nvidia_driver(),
        },
        "without_devices": backends.without_devices(built(), found.devices),
        "unused_gpus": [
            {
                "vendor": gpu.vendor,
                "name": gpu.name,
                "address": gpu.address,
                "message": (message := doctor.unused_gpu(gpu, clone))[0],
                "command": message[1],
            }
            for gpu in unused
        ],
    }


def _device_row(item: dict[str, Any]) -> tuple[str, ...]:
    memory = size(item["total_bytes"]), size(item["free_bytes"])
    return (item["name"], item["kind"], item["backend"], *memory, item["description"])


def _features(said: dict[str, str]) -> str:
    """ "AVX2 FMA ARCHS=890": what is on by its name alone, what is off not at all."""
    return " ".join(name if value == "1" else f"{name}={value}" for name, value in said.items() if value != "0")
