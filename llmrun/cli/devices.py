"""`llmrun devices`: what llama.cpp can compute on, here and at workers, and what this machine has that it can't use."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrun import __version__
from llmrun.cli import options, screen, table
from llmrun.endpoints import parse_endpoints
from llmrun.units import significant, size

if TYPE_CHECKING:
    from llmrun.engine.devices import Found

Workers = Annotated[
    str, typer.Option("--rpc", metavar="HOST:PORT,…", help="Also the devices of these workers (llmrun worker).")
]


def devices(rpc: Workers = "", as_json: options.Json = False) -> None:
    """Show what llama.cpp can compute on, with memory, features and versions.

    Of the CPU's memory, what is free is what this process could really have: within the limits of its container.
    """
    endpoints = parse_endpoints(rpc)
    from llmrun.engine.devices import find_devices

    facts = facts_of(find_devices(endpoints))
    if as_json:
        screen.out_json(facts)
        return
    columns = [table.Column(title) for title in ("DEVICE", "KIND", "BACKEND")]
    columns += [table.Column("MEMORY", right=True), table.Column("FREE", right=True)]
    columns.append(table.Column("WHAT IT IS", flexible=True))
    table.show(
        columns,
        [
            (item["name"], item["kind"], item["backend"], *_memory(item), item["description"])
            for item in facts["devices"]
        ],
    )
    screen.out("\n")
    features = {item["backend"]: item["features"] for item in facts["devices"] if item["features"]}
    pairs = [(f"{backend} features", _features(said)) for backend, said in features.items()]
    threads = facts["threads"]
    pairs.append(
        (
            "threads",
            f"{threads['default']} ({threads['physical_cores']} physical cores, {threads['logical_cpus']} logical; "
            f"quota {significant(threads['quota'])})",
        )
    )
    if not features:  # else it would say the same again
        pairs.append(("built with", facts["system_info"]))
    pairs += [(name.replace("_", " "), version) for name, version in facts["versions"].items() if version]
    table.show_pairs(pairs)
    for gpu in facts["unused_gpus"]:
        screen.note(gpu["message"])
        if gpu["command"]:
            screen.note(f"  try: {gpu['command']}")


def facts_of(found: Found) -> dict[str, Any]:
    """The document that `--json` prints: sizes in bytes, None where unknown."""
    import platform

    from llmrun import accelerators, checks, hardware

    cpus = hardware.usable_cpus()
    backends = {device.backend for device in found.devices}
    clone = accelerators.clone_folder()
    unused = [gpu for gpu in accelerators.find_gpus() if not gpu.used_by(backends)]
    return {
        "devices": [asdict(device) for device in found.devices],
        "threads": {
            "default": hardware.default_threads(),
            "physical_cores": hardware.physical_cores(cpus),
            "logical_cpus": len(cpus),
            "quota": hardware.cpu_quota(),
        },
        "system_info": " | ".join(part.strip() for part in found.system_info.split("|") if part.strip()),
        "versions": {
            "llmrun": __version__,
            "llama-cpp-python": checks.installed("llama-cpp-python"),
            **found.versions,
            "python": platform.python_version(),
            "nvidia_driver": accelerators.nvidia_driver(),
        },
        "unused_gpus": [
            {
                "vendor": gpu.vendor,
                "name": gpu.name,
                "address": gpu.address,
                "message": (message := checks.unused_gpu(gpu, clone))[0],
                "command": message[1],
            }
            for gpu in unused
        ],
    }


def _memory(item: dict[str, Any]) -> tuple[str, str]:
    return size(item["total_bytes"]), size(item["free_bytes"])


def _features(said: dict[str, str]) -> str:
    """ "AVX2 FMA ARCHS=890": what is on by its name alone, what is off not at all."""
    return " ".join(name if value == "1" else f"{name}={value}" for name, value in said.items() if value != "0")
