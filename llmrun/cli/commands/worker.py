"""`llmrun worker`: lends this machine's devices to llmrun, or llama.cpp, on another."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from llmrun import codec
from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.terminal import screen
from llmrun.errors import UsageError
from llmrun.options.endpoints import DEFAULT_PORT
from llmrun.units import size

if TYPE_CHECKING:
    from llmrun.machine.device import Device


_WARNING = """\
warning: whoever reaches {address} can use this machine's devices, and perhaps this machine.
  The authors of llama.cpp call its RPC a proof of concept, fragile and insecure, and say never to run it on an open
  network or in a sensitive environment (llama.cpp, tools/rpc/README.md). There is no password and no encryption."""


def worker(
    host: Annotated[str, Option("--host", metavar="ADDRESS", help="The IPv4 address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option("--port", "-p", metavar="PORT", help="The port; 0: any that is free.")] = DEFAULT_PORT,
    device: Annotated[
        str | None,
        Option("--device", "-dev", metavar="NAME,…", help="What to lend.", without="the GPUs, or else the CPU"),
    ] = None,
    memory: Annotated[
        float | None,
        Option("--memory", metavar="GIB", help="Lend so much of each device's memory.", without="all that is free"),
    ] = None,
    threads: options.NThreads = None,
    allow_remote: Annotated[
        bool, Option("--allow-remote", help="Listen at an address that others can reach. Read the warning.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, Option("--json", help="Print one line of JSON when it listens.", panel="Output")] = False,
) -> None:
    """Lend this machine's devices to `llmrun run --rpc` on another.

    One client is served at a time; a second one waits until the first has gone. A client that makes the server crash
    is thrown out, and the server started again. Ctrl-C ends it. For machines that trust each other on a closed network:
    see --allow-remote.
    """
    from llmrun.engine.rpc.host import Offer, Restarted, Server, is_loopback

    if memory is not None and not 0 < memory < 1 << 20:  # NaN included
        raise UsageError(f"--memory {memory}: GiB, more than 0")
    offer = Offer(
        host=host,
        port=port,
        devices=[name.strip() for name in device.split(",") if name.strip()] if device else (),
        limit_bytes=None if memory is None else round(memory * (1 << 30)),
        n_threads=threads,
    )
    if not is_loopback(host):
        if not allow_remote:
            raise UsageError(
                f"--host {host}: others could reach it, and llama.cpp's RPC has no protection of its own",
                hint="--allow-remote, on a closed network of machines that trust each other",
            )
        screen.note(_WARNING.format(address=f"{host}:{port}"))
    with Server(offer) as server:
        if as_json:
            devices = codec.plain(server.devices)
            facts = {"host": server.host, "port": server.port, "pid": os.getpid(), "devices": devices}
            screen.out(json.dumps(facts) + "\n")
        if not quiet:
            at = f"{server.host}:{server.port}"
            reach = at if server.host != "0.0.0.0" else f"ADDRESS-OF-THIS-MACHINE:{server.port}"
            screen.note(f"serving {_listed(server.devices)} on {at}; use it with: llmrun run MODEL --rpc {reach}")
        for event in server.events():
            if isinstance(event, Restarted):
                # Never kept quiet: somebody's answer has broken off.
                screen.note(
                    f"the server crashed, most likely of a client's message, and serves again: it {event.reason}"
                )
            elif not quiet:
                screen.note("a client is connected" if event.connected else "the client is gone")


def _listed(devices: Sequence[Device]) -> str:
    return ", ".join(f"{device.name} ({size(device.free_bytes)})" for device in devices)
