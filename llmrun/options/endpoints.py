"""Where workers are: "host:port", checked before llama.cpp sees it. What it can't parse, it dies of."""

from __future__ import annotations

import re

from llmrun.errors import Change, UsageError

DEFAULT_PORT = 50052
"""llama.cpp's own."""

MAX_ENDPOINTS = 15
"""ggml schedules 16 backends at most (GGML_SCHED_MAX_BACKENDS), the CPU always among them; with one more it aborts."""

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_EXAMPLE = Change({"rpc": ("192.168.1.7:50052", "192.168.1.8:50052")})


def parse_endpoints(text: str) -> tuple[str, ...]:
    """The workers in "host:port,host:port", in their order; none in an empty text. Raises `UsageError`.

    llama.cpp's client splits at the first colon and resolves to IPv4 only, so that there is no way to write an IPv6
    address.
    """

    def wrong(problem: str) -> UsageError:
        return UsageError(problem, field="rpc", value=text, hint=_EXAMPLE)

    endpoints = [item.strip() for item in text.split(",")] if text.strip() else []
    seen: set[str] = set()
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        if ":" in host:
            raise wrong(f"'{endpoint}': llama.cpp's RPC knows IPv4 addresses and names only")
        if not host or not _HOST.fullmatch(host):
            raise wrong(f"'{endpoint}' is not host:port")
        if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
            raise wrong(f"'{endpoint}': a port is a number from 1 to 65535")
        # To ask one worker twice is to wait for oneself: it serves one client at a time.
        same = f"{'127.0.0.1' if host.lower() == 'localhost' else host.lower()}:{int(port)}"
        if same in seen:
            raise wrong(f"'{endpoint}' is named twice")
        seen.add(same)
    if len(endpoints) > MAX_ENDPOINTS:
        raise wrong(f"{len(endpoints)} workers, llama.cpp can use {MAX_ENDPOINTS} at most")
    return tuple(endpoints)


def listed(endpoints: tuple[str, ...]) -> str:
    """As `parse_endpoints` takes them."""
    return ",".join(endpoints)
