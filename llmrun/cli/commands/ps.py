"""`llmrun ps`: the servers that run on this machine."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from llmrun.cli.framework import options
from llmrun.cli.terminal import screen
from llmrun.units import UNKNOWN, ago

if TYPE_CHECKING:
    from llmrun.server.serve import Running


def ps(as_json: options.Json = False) -> None:
    """Show the servers that run, and what they do.

    Of one that needs a key what it does is known only with the key, in LLMRUN_API_KEY.
    """
    from llmrun.server.serve import all_running

    found = [(running, _props(running)) for running in all_running()]
    if as_json:
        screen.out_json([_plain(running, props) for running, props in found])
        return
    if not found:
        screen.note("no server runs; llmrun serve MODEL starts one")
        return
    from llmrun.cli.terminal import tables

    rows = []
    for running, props in found:
        for name in running.models:
            since = ago(time.time() - running.begun)
            rows.append((running.address, str(running.pid), name, *_state(running, name, props), since))
    tables.show(("address", "process", "model", "state", "answers", "since"), rows)


def _state(running: Running, name: str, props: dict[str, Any] | None) -> tuple[str, str]:
    if props is None:
        return "needs its key" if running.needs_key else "does not answer", UNKNOWN
    of = next((each for each in props["models"] if each["model"] == name), None)
    if of is None:
        return "not loaded", UNKNOWN
    return str(of["state"]), f"{of['n_active']} of {of['n_slots'] or UNKNOWN}, {of['n_waiting']} waiting"


def _props(running: Running) -> dict[str, Any] | None:
    """What it says of itself; None: nothing."""
    import json
    from urllib.error import URLError
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(f"{running.address}/props")
    if key := os.environ.get("LLMRUN_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=2) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except (URLError, OSError, ValueError):
        return None


def _plain(running: Running, props: dict[str, Any] | None) -> dict[str, Any]:
    from llmrun import codec

    return {**codec.plain(running), "props": props}
