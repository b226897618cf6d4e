"""`llmrun doctor`: one line per thing that goes wrong on real machines, and what to type."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

from llmrun.cli.framework import options, spelling
from llmrun.cli.framework.options import Option
from llmrun.cli.terminal import screen, tables
from llmrun.errors import LlmrunError

if TYPE_CHECKING:
    from llmrun.machine.doctor import Check

_LOOK_S = 0.25
_NETWORK_S = 10


def doctor(
    network: Annotated[bool, Option("--network", help="Also ask the hub whether it can be reached.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check this machine for what makes runs fail or slow, and say what to do about it.

    Warnings leave the exit code 0. A problem gives that with which a run would end: 5 network, 7 disk, 9 llama.cpp,
    10 memory; of several problems, that of the first. Nothing leaves this machine unless --network is given.
    """
    from llmrun.engine.devices import built, find_devices
    from llmrun.machine import doctor, gpus, hardware
    from llmrun.machine.backends import without_devices
    from llmrun.models.store.listing import list_leftovers

    clone = gpus.clone_folder()
    backends: list[str] | None = None
    failure: LlmrunError | None = None
    unused: list[str] = []
    idle: str | None = None
    try:
        devices = find_devices().devices
        backends = [device.backend for device in devices]
        unused = hardware.unused_instructions(devices)
        idle = without_devices(built(), devices)
    except LlmrunError as error:
        failure = error
    found = [
        doctor.llama_cpp(failure, clone, unused),
        *doctor.gpu_checks(gpus.find_gpus(), backends, clone),
        *doctor.without_devices(idle),
        *doctor.of_this_machine(lambda: time.sleep(_LOOK_S), list_leftovers),
    ]
    if network:
        found.append(doctor.network(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", _seconds_to_answer))
    code = doctor.exit_code(found)
    shown = [(each.name, each.status, spelling.text(each.message), _remedy(each)) for each in found]
    if as_json:
        checks = [
            {"name": name, "status": status, "message": message, "remedy": remedy, "exit_code": check.exit_code}
            for (name, status, message, remedy), check in zip(shown, found, strict=True)
        ]
        screen.out_json({"checks": checks, "exit_code": code})
    else:
        rows: list[tuple[str, str, str]] = []
        for name, status, message, remedy in shown:
            rows.append((name, status, message))
            if remedy and status != "ok":
                rows.append(("", "", f"try: {remedy}"))
        tables.show(("CHECK", "STATUS", "WHAT WAS FOUND…"), rows)
    if code:
        raise SystemExit(code)


def _remedy(check: Check) -> str | None:
    return "; ".join(map(spelling.typed, check.remedies)) or None


def _seconds_to_answer(endpoint: str) -> float:
    """How long the hub takes to say anything at all: also "401" is an answer. Raises `OSError`."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    begin_s = time.perf_counter()
    try:
        urlopen(f"{endpoint.rstrip('/')}/api/models?limit=1", timeout=_NETWORK_S).close()
    except HTTPError as error:
        error.close()
    except (ValueError, HTTPException) as error:  # HF_ENDPOINT is no URL, or what is there no web server
        raise OSError(str(error)) from None
    return time.perf_counter() - begin_s
